"""Upstream's interface: its names, its order, its results."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack as Reference
from torch import Tensor, nn

from robustgen import data, load_model
from robustgen.attacks.dropin import AutoAttack
from robustgen.errors import UserError
from robustgen.threat import ThreatModel

# As of github.com/fra31/auto-attack; those that are not here are of TensorFlow and of its log file.
CONSTRUCTOR = ["model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version", "device"]
RUN = ["x_orig", "y_orig", "bs", "return_labels"]


def small(**changes: Any) -> AutoAttack:
    """On a random net, verbose only where asked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    settings = {"norm": "Linf", "eps": 0.1, "verbose": False} | changes
    return AutoAttack(settings.pop("model", net), **settings)


def quick(adversary: AutoAttack) -> AutoAttack:
    adversary.attack.budget = adversary.attack.budget.model_copy(update={"n_iter": 5, "n_queries": 20})
    return adversary


def pictures(n: int) -> tuple[Tensor, Tensor]:
    digits = data.load("digits").slice(0, n)
    return digits.images, digits.labels


def test_names_order_and_defaults_are_upstreams() -> None:
    ours = inspect.signature(AutoAttack.__init__).parameters
    assert list(ours)[1:9] == CONSTRUCTOR
    theirs = inspect.signature(Reference.__init__).parameters
    shared = (set(ours) & set(theirs)) - {"self", "model", "device"}
    assert shared == {"norm", "eps", "seed", "version"}
    assert all(ours[name].default == theirs[name].default for name in shared)
    call = inspect.signature(AutoAttack.run_standard_evaluation).parameters
    assert list(call)[1:] == RUN
    assert (
        call["bs"].default
        == inspect.signature(Reference.run_standard_evaluation).parameters["batch_size"].default
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0}, "eps must be positive"),
        ({"eps": -1.0}, "eps must be positive"),
        ({"norm": "linf"}, "unknown norm"),
        ({"norm": "L0"}, "unknown norm"),
        ({"version": "best"}, "unknown version"),
        ({"version": "custom"}, "unknown version"),
        ({"version": "custom", "attacks_to_run": ["pgd"]}, "unknown version"),
        ({"attacks_to_run": ["apgd-ce"]}, "unknown version"),
        ({"precision": "fp16"}, "unknown precision"),
        ({"model": nn.Linear(2, 2)}, "training mode"),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_pictures_outside_the_box_are_an_error(value: float) -> None:
    x, y = pictures(4)
    x = x.clone()
    x[1, 0, 2, 3] = value
    with pytest.raises(UserError, match="outside the box"):
        small().run_standard_evaluation(x, y)


@pytest.mark.parametrize(("n", "labels"), [(0, 0), (4, 3)])
def test_no_pictures_and_missing_labels_are_an_error(n: int, labels: int) -> None:
    x, y = pictures(4)
    with pytest.raises(UserError, match="images and labels do not match, or there are none") as error:
        small().run_standard_evaluation(x[:n], y[:labels])
    assert error.value.details["got"] == f"{n} images, {labels} labels"


def test_nan_and_infinite_logits_are_an_error() -> None:
    x, _ = pictures(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def model(x: Tensor) -> Tensor:
        return net(x) + torch.where(x.amax((1, 2, 3)) <= 0.5, 0.0, torch.nan)[:, None]

    x = x / 2
    with pytest.raises(UserError, match="returned NaN"):
        quick(small(model=model)).run_standard_evaluation(x, net(x).argmax(1))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.3), ("L1", 1.0)])
def test_results_lie_in_the_ball_and_seeds_decide(norm: str, eps: float) -> None:
    x, y = pictures(12)
    results = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        adversary = quick(small(norm=norm, eps=eps, seed=seed, version="custom", attacks_to_run=["square"]))
        y = adversary.model(x).argmax(1)
        results[name], labels = adversary.run_standard_evaluation(x, y, bs=5, return_labels=True)
        assert torch.equal(labels, adversary.model(results[name]).argmax(1))
        assert labels.dtype == y.dtype
        broken = [name is not None for name in adversary.broken_by]
        assert (labels != y).tolist() == broken
        assert torch.equal(results[name][~torch.tensor(broken)], x[~torch.tensor(broken)])
        assert any(broken)
    threat = ThreatModel({"Linf": "linf", "L2": "l2", "L1": "l1"}[norm], eps)
    assert threat.contains(x, results["first"]).all()
    assert torch.equal(results["first"], results["again"])
    assert not torch.equal(results["first"], results["other"])


def test_a_function_is_a_model_and_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = pictures(8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    adversary = quick(small(model=lambda x: net(x), verbose=True))
    x_adv = adversary.run_standard_evaluation(x, y)
    assert isinstance(x_adv, Tensor)
    assert adversary.broken_by[0] is None
    text = capsys.readouterr().out
    assert "clean accuracy: 87.50% (n = 8)" in text
    robust = float((net(x_adv).argmax(1) == y).float().mean())
    assert f"robust accuracy after square: {robust:.2%}" in text


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("name", ["pgd-at-digits", "softmax-noise-digits"])
def test_robust_accuracy_is_the_references(name: str) -> None:
    x, y = pictures(32)
    model = load_model(name).eval().requires_grad_(False)
    theirs = Reference(model, norm="Linf", eps=0.15, seed=0)
    ours = AutoAttack(model, norm="Linf", eps=0.15, seed=0, verbose=False)
    ours.attack.budget = ours.attack.budget.model_copy(update={"n_queries": 300, "n_iter": 50})
    theirs.square.n_queries = 300
    theirs.fab.n_iter = 50
    for attack in (theirs.apgd, theirs.apgd_targeted):
        attack.__init__(model, n_iter=50, norm="Linf", eps=0.15, seed=0, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, _ = theirs.run_standard_evaluation(x, y, batch_size=32)
    found = ours.run_standard_evaluation(x, y)
    robust = [int((model(images).argmax(1) == y).sum()) for images in (reference, found)]
    assert robust[1] <= robust[0] + 1
    assert abs(robust[1] - robust[0]) <= 1


def test_a_random_net_is_not_broken_by_a_lucky_draw_nor_counted_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) + 3 * torch.randn(len(x), 10)

    torch.manual_seed(0)
    adversary = quick(small(model=Noisy().eval(), verbose=True, attacks_to_run=["apgd-ce"], version="custom"))
    adversary.run_standard_evaluation(*pictures(32), bs=32)
    said = [float(share) for share in re.findall(r"accuracy.*?: ([\d.]+)%", capsys.readouterr().out)]
    assert len(said) == 2
    assert 100 >= said[0] >= said[1] >= 0
