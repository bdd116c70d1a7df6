from __future__ import annotations

import random

import numpy as np
import pyautoattack
import pytest
import torch
from linear_oracle import DUAL, model_and_pictures
from torch import nn

from robustgen.attacks.autoattack import STANDARD
from robustgen.attacks.outside.pyautoattack import (
    NORMS,
    PARTS,
    ReferenceBudget,
    ReferenceCascade,
)
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError
from robustgen.perturb import Perturbed
from robustgen.threat import ThreatModel

EPS = {"linf": 0.1, "l2": 0.6, "l1": 2.0}
SHORT = {"n_target_classes": 1, "n_queries": 100}
SHORT_ALONE = {
    "apgd-ce": {},
    "apgd-t": {"n_target_classes": 1},
    "fab-t": {"n_target_classes": 1, "n_iter": 30},
    "square": {"n_queries": 300},
}


def run(attack: ReferenceCascade, model: FixedBatch, digits: Dataset, n: int = 32) -> Perturbed:
    part = digits.slice(0, n)
    model.begin(n)
    return attack(model, part.images, part.labels, Draws(0, "test", part.sample_ids))


def on(attack: ReferenceCascade, model: FixedBatch, x: torch.Tensor, y: torch.Tensor) -> Perturbed:
    model.begin(len(x))
    return attack(model, x, y, Draws(0, "test", torch.arange(len(x))))


def upstream(norm: str, seed: int, model: nn.Module) -> pyautoattack.AutoAttack:
    attack = pyautoattack.AutoAttack(model, norm=NORMS[norm], eps=EPS[norm], seed=seed, version="standard")
    attack.verbose = False
    return attack


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_finds_the_very_pictures_that_pyautoattack_finds(
    trained: FixedBatch, digits: Dataset, norm: str
) -> None:
    part = digits.slice(0, 32)
    theirs = upstream(norm, Draws(0, "test", part.sample_ids).integer(), trained)
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = SHORT["n_target_classes"]
    theirs.square.n_queries = SHORT["n_queries"]
    expected, _ = theirs.run_standard_evaluation(part.images, part.labels, batch_size=32)
    found = run(ReferenceCascade("standard", ThreatModel(norm, EPS[norm]), **SHORT), trained, digits).images
    robust = int((trained(found).argmax(1) == part.labels).sum())
    assert 0.2 * 32 <= robust <= 0.8 * 32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_full_budget_is_that_of_the_standard_version(trained: FixedBatch, norm: str) -> None:
    theirs = upstream(norm, 0, trained)
    theirs.apgd.loss, theirs.fab.targeted = "ce", True
    reference = {
        "apgd-ce": theirs.apgd,
        "apgd-t": theirs.apgd_targeted,
        "fab-t": theirs.fab,
        "square": theirs.square,
    }
    assert tuple(theirs.attacks_to_run) == STANDARD
    for stage in STANDARD:
        part = PARTS[stage](trained, ThreatModel(norm, EPS[norm]), ReferenceBudget(), 0)
        ours = vars(part.__self__) | {"device": None, "logger": None}  # type: ignore[attr-defined]
        assert ours == vars(reference[stage]) | {"device": None, "logger": None}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_names_the_stage_that_broke_each_sample(trained: FixedBatch, digits: Dataset, norm: str) -> None:
    threat = ThreatModel(norm, EPS[norm])
    part = digits.slice(0, 32)
    found, broken_by, _ = run(ReferenceCascade("standard", threat, **SHORT), trained, digits)
    assert broken_by is not None
    right_before = trained(part.images).argmax(1) == part.labels
    wrong_after = trained(found).argmax(1) != part.labels
    for i in range(32):
        assert (broken_by[i] is not None) == bool(right_before[i] & wrong_after[i])
        assert (broken_by[i] is None) == torch.equal(found[i], part.images[i])
    assert threat.contains(part.images, found).all()
    alone = run(ReferenceCascade("apgd-ce", threat), trained, digits).broken_by
    assert [b == "apgd-ce" for b in broken_by] == [b == "apgd-ce" for b in alone or []]


class Drawn(Classifier):
    """Class 1 where the first pixel is above a level that every draw has another one of, 0.5 on average."""

    num_classes, input_shape, stochastic = 2, (1, 8, 8), True

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def logits(self, x: torch.Tensor, sigma: float | torch.Tensor | None = None) -> torch.Tensor:
        lead = x[:, 0, 0, 0] - 0.5 + 0.1 * torch.randn(len(x), generator=self.generator)
        return 10 * torch.stack([-lead, lead], 1)


def test_of_a_stochastic_model_every_sample_is_attacked_and_the_worst_picture_by_the_mean_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stage, far in zip(STANDARD, (0.05, 0.0, 0.25, -0.1), strict=True):
        monkeypatch.setitem(PARTS, stage, lambda *_, far=far: lambda x, y: x + far)
    x = torch.full((64, 1, 8, 8), 0.2)
    found, broken_by, _ = on(
        ReferenceCascade("standard", ThreatModel("linf", 0.25)),
        FixedBatch(Drawn(), 64),
        x,
        torch.zeros(64, dtype=torch.int64),
    )
    assert torch.allclose(found, x + 0.25)
    assert {*broken_by} <= {None, "fab-t"}


@pytest.mark.parametrize("stage", STANDARD)
def test_each_part_works_alone(trained: FixedBatch, digits: Dataset, stage: str) -> None:
    attack = ReferenceCascade(stage, ThreatModel("linf", 0.2), **SHORT_ALONE[stage])
    broken_by = run(attack, trained, digits, 16).broken_by
    assert broken_by is not None
    assert set(broken_by) <= {stage, None}
    assert broken_by.count(stage) >= 8
    assert attack.name.startswith(f"pyautoattack-{stage}")


def test_a_rerun_is_bit_equal_and_the_global_generators_are_left_alone(
    trained: FixedBatch, digits: Dataset
) -> None:
    attack = ReferenceCascade(
        "standard", ThreatModel("linf", 0.1), n_iter=5, n_target_classes=2, n_queries=50
    )
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = run(attack, trained, digits)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    second = run(attack, trained, digits)
    assert torch.equal(first.images, second.images)
    assert first.broken_by == second.broken_by
    assert attack.seeded_by_chunk


def test_is_silent_and_leaves_no_gradient_on_the_weights(
    trained: FixedBatch, digits: Dataset, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # Upstream warns of gradients that are 0.
    attack = ReferenceCascade(
        "standard", ThreatModel("linf", 0.1), n_iter=5, n_target_classes=2, n_queries=20
    )
    flat = FixedBatch(PlainClassifier(Flat(), 10, (1, 8, 8)), 32)
    part = digits.slice(0, 8)
    on(attack, flat, part.images, torch.zeros(8, dtype=torch.int64))
    run(attack, trained, digits)
    assert all(weight.grad is None for weight in trained.parameters())
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


class Flat(nn.Module):
    """Class 0 for every picture, with a gradient of 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] * 0 + torch.arange(10).flip(0)


class Constant(nn.Module):
    """All logits equal for every picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] * 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_tie_of_all_logits_stops_no_part(digits: Dataset, norm: str) -> None:
    constant = FixedBatch(PlainClassifier(Constant(), 10, (1, 8, 8)), 4)
    x, y = digits.images[:4], torch.zeros(4, dtype=torch.int64)
    attack = ReferenceCascade(
        "standard", ThreatModel(norm, EPS[norm]), n_iter=3, n_target_classes=1, n_queries=3
    )
    assert on(attack, constant, x, y).broken_by == [None] * 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_classes_than_targeted_dlr_needs(norm: str, classes: int) -> None:
    net, model, x, y = model_and_pictures(classes)
    distance = net.distances(x, y, DUAL[norm])
    eps = float(distance.median())
    found = on(ReferenceCascade("apgd-t", ThreatModel(norm, eps)), model, x, y).images
    broken = model(found).argmax(1) != y
    assert not (broken & (distance > eps * (1 + 1e-5))).any()
    assert not (~broken & (distance < eps * 0.99)).any()
    short = ReferenceCascade("standard", ThreatModel(norm, eps), n_iter=20, n_queries=20)
    cascade = on(short, model, x, y)
    assert torch.equal(model(cascade.images).argmax(1) != y, broken)


def test_refuses_pictures_that_square_cannot_stripe() -> None:
    model = FixedBatch(PlainClassifier(nn.Flatten(), 16, (1, 4, 4)), 2)
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(UnsupportedError, match="at least 5x5"):
        on(ReferenceCascade("square", ThreatModel("l2", 0.5)), model, x, y)
    on(ReferenceCascade("square", ThreatModel("linf", 0.1), n_queries=3), model, x, y)
