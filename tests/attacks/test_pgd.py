from __future__ import annotations

import pytest
import torch
from linear_oracle import DUAL, model_and_pictures
from torch import Tensor

from robustgen.attacks.losses import log_odds, margin
from robustgen.attacks.pgd import PGD
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.threat import ThreatModel


def wrong(model: FixedBatch, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) != y


def attack(threat: ThreatModel, model: FixedBatch, x: Tensor, y: Tensor, **options: object) -> Tensor:
    model.begin(len(x))
    return PGD(threat, **options)(model, x, y, Draws(0, "test", torch.arange(len(x)))).images


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 10])
def test_reaches_the_exact_robust_accuracy_of_a_linear_model(norm: str, classes: int) -> None:
    net, model, x, y = model_and_pictures(classes)
    distance = net.distances(x, y, DUAL[norm])
    eps = float(distance.median()) * (1 + 1e-3)
    broken = wrong(model, attack(ThreatModel(norm, eps), model, x, y), y)
    assert not (broken & (distance > eps * (1 + 1e-5))).any(), "PGD beat the oracle: it left the ball"
    # In Linf the corner is reached exactly; on the sphere, steps of eps / 8 come within 1 %.
    breakable = distance < eps * (1 - (1e-4 if norm == "linf" else 1e-2))
    assert breakable.sum() > 20
    assert not (breakable & ~broken).any()


def test_is_not_blind_where_cross_entropy_has_no_gradient() -> None:
    net, model, x, y = model_and_pictures(10, scale=1000.0)
    x_grad = x.clone().requires_grad_()
    entropy = torch.nn.functional.cross_entropy(model(x_grad), y, reduction="sum")
    blind = torch.autograd.grad(entropy, x_grad)[0].flatten(1).abs().amax(1) == 0
    assert blind.sum() > 32, "the premise: cross-entropy underflows on most of these"
    eps = float(net.distances(x, y, 1.0).max()) * 1.05
    x_adv = attack(ThreatModel("linf", eps), model, x, y)
    assert wrong(model, x_adv, y)[blind].all()


def test_log_odds_climb_as_cross_entropy_does() -> None:
    logits = torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(16) % 10
    entropy = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(torch.nn.functional.softplus(log_odds(logits, y)), entropy)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_gets_the_same_bits_in_any_chunk_and_order(
    trained: FixedBatch, digits: Dataset, norm: str
) -> None:
    pgd = PGD(ThreatModel(norm, 0.1 if norm == "linf" else 0.5), steps=5, restarts=3)

    def run(rows: Tensor) -> Tensor:
        trained.begin(len(rows))
        return pgd(
            trained, digits.images[rows], digits.labels[rows], Draws(7, "e", digits.sample_ids[rows])
        ).images

    whole = run(torch.arange(64))
    reverse = torch.arange(64).flip(0)
    assert torch.equal(run(reverse), whole[reverse])
    for rows in (torch.arange(5), torch.arange(17, 50), torch.tensor([63, 2])):
        assert torch.equal(run(rows), whole[rows])


def test_every_restart_can_only_break_more(trained: FixedBatch, digits: Dataset) -> None:
    threat = ThreatModel("linf", 0.1)
    broken = [
        wrong(
            trained, attack(threat, trained, digits.images, digits.labels, steps=3, restarts=r), digits.labels
        )
        for r in (1, 2, 8)
    ]
    assert not (broken[0] & ~broken[1]).any()
    assert not (broken[1] & ~broken[2]).any()
    assert broken[2].sum() > broken[0].sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_keeps_to_the_budget_and_leaves_no_trace(trained: FixedBatch, digits: Dataset, norm: str) -> None:
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 0.5)
    labels = digits.labels.clone()
    labels[0] = (labels[0] + 1) % 10  # wrong from the start
    before = digits.images.clone()
    x_adv = attack(threat, trained, digits.images, labels)
    assert threat.contains(before, x_adv).all()
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert torch.equal(x_adv[0], before[0]), "the clean picture, where that is wrong already"
    assert torch.equal(digits.images, before)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_sample_is_asked_about_until_it_is_broken(trained: FixedBatch, digits: Dataset) -> None:
    labels = digits.labels.clone()
    labels[0] = (labels[0] + 1) % 10  # wrong from the start
    x_adv = attack(ThreatModel("linf", 0.1), trained, digits.images, labels, steps=10, restarts=3)
    broken = wrong(trained, x_adv, labels)
    from_the_start = wrong(trained, digits.images, labels)
    assert trained.backwards[~broken].unique().tolist() == [3 * 11], "a start and 10 steps, 3 times"
    assert trained.backwards[from_the_start].unique().tolist() == [0]
    found = trained.backwards[broken & ~from_the_start]
    assert found.min() < 11
    assert found.mean() < 3 * 11 / 2


def robust(model: FixedBatch, x_adv: Tensor, digits: Dataset) -> int:
    return int((~wrong(model, x_adv, digits.labels)).sum())


def test_is_as_strong_as_foolbox(trained: FixedBatch, digits: Dataset) -> None:
    foolbox = pytest.importorskip("foolbox")
    reference = foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu")
    torch.manual_seed(0)
    theirs = foolbox.attacks.LinfPGD(rel_stepsize=0.125, steps=20)(
        reference, digits.images, digits.labels, epsilons=0.1
    )[1]
    same = {"steps": 20, "restarts": 1, "loss": "ce"}
    ours = attack(ThreatModel("linf", 0.1), trained, digits.images, digits.labels, **same)
    assert 20 <= robust(trained, ours, digits) <= 108
    # Foolbox returns the last iterate, and ours keeps any wrong one.
    assert -4 <= robust(trained, ours, digits) - robust(trained, theirs, digits) <= 1


def test_is_as_strong_as_torchattacks(trained: FixedBatch, digits: Dataset) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    theirs = torchattacks.PGDL2(trained, eps=0.5, alpha=0.0625, steps=20)(digits.images, digits.labels)
    same = {"steps": 20, "restarts": 1, "loss": "ce"}
    ours = attack(ThreatModel("l2", 0.5), trained, digits.images, digits.labels, **same)
    assert 20 <= robust(trained, ours, digits) <= 108
    assert -4 <= robust(trained, ours, digits) - robust(trained, theirs, digits) <= 1


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UnsupportedError, match="no L1 steps"):
        PGD(ThreatModel("l1", 5.0))
    with pytest.raises(UserError, match="no key named 'step'") as error:
        PGD(ThreatModel("linf", 0.1), step=3)
    assert "steps" in str(error.value)
    with pytest.raises(UserError, match="steps"):
        PGD(ThreatModel("linf", 0.1), steps=0)
