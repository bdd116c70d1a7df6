from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_oracle import DUAL, model_and_pictures
from torch import Tensor
from torch.nn import functional

from robustgen.attacks.apgd import apgd
from robustgen.attacks.autoattack import STANDARD, AutoAttack
from robustgen.attacks.joint import ADAPTIVE, JointAdaptive, noise_size
from robustgen.attacks.losses import margin
from robustgen.attacks.search import run
from robustgen.attacks.substitute_gradients import Smoothed
from robustgen.attacks.victim import EOT, Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Perturbed
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)
SHORT: dict[str, Any] = {"n_iter": 16, "n_target_classes": 3, "n_queries": 100}
N = 64


class Backward(torch.autograd.Function):
    """The identity, with a backward pass of somebody's choice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


class Masked(Classifier):
    """A classifier behind a mask that leaves its decisions as they are."""

    def __init__(
        self,
        model: Classifier,
        *,
        forward: Callable[[Tensor], Tensor] = lambda z: z,
        backward: Callable[[Tensor], Tensor] = lambda g: g,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.mask, self.change, self.stochastic = model, forward, backward, stochastic
        self.num_classes, self.input_shape = model.num_classes, model.input_shape

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.mask(self.model.logits(Backward.apply(x, self.change)))


def quantised(logits: Tensor) -> Tensor:
    """Logits in whole numbers, a tie going to the class that was first before."""
    best = functional.one_hot(logits.argmax(1), logits.shape[1])
    return logits.round() + 0.001 * best


def noisy(logits: Tensor) -> Tensor:
    return logits + 0.1 * torch.randn_like(logits)


MASKS: dict[str, dict[str, Any]] = {
    "no gradient": {"backward": torch.zeros_like},
    "turned around": {"backward": torch.neg},
    "rounded backward": {"backward": torch.round},
    "logits x 1e4": {"forward": lambda z: 1e4 * z},
    "quantised": {"forward": quantised},
    "random": {"forward": noisy, "stochastic": True},
}


def attack(
    model: Classifier, digits: Dataset, n: int = N, kind: type[AutoAttack] = JointAdaptive
) -> Perturbed:
    part = digits.slice(0, n)
    served = FixedBatch(model, 32)
    served.begin(n)
    return kind(THREAT, **SHORT)(served, part.images, part.labels, Draws(0, "test", part.sample_ids))


def right(model: Classifier, digits: Dataset, x: Tensor) -> Tensor:
    return model.logits(x).argmax(1) == digits.labels[: len(x)]


@pytest.fixture(scope="module")
def robust(trained: FixedBatch, digits: Dataset) -> float:
    """The unmasked net's robust accuracy."""
    found = float(right(trained, digits, attack(trained.model, digits).images).float().mean())
    assert 0.2 < found < 0.8, "masks could do nothing, or everything"
    return found


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_changes_no_decision_hides_next_to_nothing(
    trained: FixedBatch, digits: Dataset, robust: float, mask: str
) -> None:
    masked = Masked(trained.model, **MASKS[mask])
    images = attack(masked, digits).images
    assert bool(THREAT.contains(digits.images[:N], images).all())
    # The verdict is the net's own, without its mask: what fooled only the mask does not count.
    masked_robust = float(right(trained, digits, images).float().mean())
    assert masked_robust == pytest.approx(robust, abs=0.03)


def test_it_contains_the_standard_version(trained: FixedBatch, digits: Dataset) -> None:
    masked = Masked(trained.model, backward=torch.neg)
    standard, adaptive = (attack(masked, digits, kind=kind) for kind in (AutoAttack, JointAdaptive))
    assert standard.broken_by is not None
    assert adaptive.broken_by is not None
    for ours, theirs in zip(adaptive.broken_by, standard.broken_by, strict=True):
        assert ours == theirs or (theirs is None and ours in ADAPTIVE)
    broken = [stage is not None for stage in standard.broken_by]
    assert torch.equal(adaptive.images[broken], standard.images[broken])
    assert set(adaptive.broken_by) & set(ADAPTIVE), "this mask leaves the standard version something to miss"


def test_what_a_row_gets_does_not_depend_on_its_neighbours(trained: FixedBatch, digits: Dataset) -> None:
    masked = Masked(trained.model, forward=quantised)
    together, few = attack(masked, digits, 24), attack(masked, digits, 9)
    assert torch.equal(together.images[:9], few.images)
    assert together.broken_by is not None
    assert together.broken_by[:9] == few.broken_by


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


def test_the_margin_breaks_what_the_cross_entropy_cannot() -> None:
    net, model, x, y = model_and_pictures(4, scale=1e5)
    asked = Victim(model).gradient(x, lambda logits: cross_entropy(logits, y, y))
    assert asked.gradient is not None
    blind = ~asked.gradient.flatten(1).any(1)
    assert int(blind.sum()) > 32, "the cross-entropy sees nothing in most pictures"

    distance = net.distances(x, y, DUAL["linf"])
    threat = ThreatModel("linf", float(distance[blind].median()))
    plain = apgd(threat, "ce", n_iter=20)
    plain.loss, plain.initial_loss = cross_entropy, 0.0
    draws = Draws(0, "test", torch.arange(64))
    by_cross_entropy = run(plain, Victim(model), x, y, draws).broken
    stages = {s.name: s for s in JointAdaptive(threat, n_iter=20).stages(model)}
    by_margin = run(stages["apgd-margin-t"].search, Victim(model), x, y, draws).broken
    # No attack can do more than this, and this one does it all.
    assert torch.equal(by_margin, distance < threat.eps * (1 - 1e-5))
    assert int((blind & by_margin & ~by_cross_entropy).sum()) > 8


def test_bpda_is_a_stage_only_where_gradients_are_hidden(trained: FixedBatch) -> None:
    masked = Masked(trained.model, forward=quantised)
    stages = JointAdaptive(THREAT, **SHORT).stages(masked)
    assert tuple(stage.name for stage in stages) == STANDARD + ADAPTIVE
    honest = JointAdaptive(THREAT, **SHORT).stages(trained)
    assert tuple(stage.name for stage in honest) == (STANDARD + ADAPTIVE)[:-1]


def test_every_stage_attacks_the_mean_of_a_stochastic_model(trained: FixedBatch) -> None:
    masked = Masked(trained.model, forward=noisy, stochastic=True)
    for stage in JointAdaptive(THREAT).stages(masked):
        view = stage.victim(masked)
        point = getattr(view, "point", view)
        assert isinstance(point, EOT)
        assert point.m == 16


def test_the_smoothing_is_as_wide_as_the_ball() -> None:
    assert noise_size(ThreatModel("linf", 0.1), 64) == 0.1
    assert noise_size(ThreatModel("l2", 0.8), 64) == pytest.approx(0.1)
    assert noise_size(ThreatModel("l1", 6.4), 64) == pytest.approx(0.1)
    generator = torch.Generator().manual_seed(0)
    noise = noise_size(ThreatModel("l2", 0.8), 4096) * torch.randn(1, 1, 64, 64, generator=generator)
    assert float(noise.norm()) == pytest.approx(0.8, rel=0.05)


def test_options_are_checked_and_show_in_the_name() -> None:
    assert JointAdaptive(THREAT).name == "joint-adaptive"
    assert JointAdaptive(THREAT, n_iter=50).name == "joint-adaptive-i50"
    with pytest.raises(UserError, match="joint-adaptive"):
        JointAdaptive(THREAT, restart=3)


def test_smoothed_stages_use_two_noise_levels(trained: FixedBatch) -> None:
    views = [stage.victim(trained) for stage in JointAdaptive(THREAT).stages(trained)]
    assert [view.sigma for view in views if isinstance(view, Smoothed)] == [0.1, 0.2]


def test_the_margin_of_two_classes_is_no_ratio() -> None:
    net, model, x, y = model_and_pictures(2)
    threat = ThreatModel("linf", float(net.distances(x, y, DUAL["linf"]).median()))
    model.begin(64)
    found = JointAdaptive(threat, **SHORT)(model, x, y, Draws(0, "test", torch.arange(64)))
    broken = margin(model.logits(found.images), y) > 0
    assert torch.equal(broken, net.distances(x, y, DUAL["linf"]) < threat.eps * (1 - 1e-5))
