from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from robustgen.attacks.apgd import apgd
from robustgen.attacks.detector import (
    DetectorAware,
    DetectorEvasion,
    DetectorScore,
    LazyDetector,
    ScoreDetector,
    VictimWithDetector,
    confidence,
    fit,
    log_prob,
    withstands,
)
from robustgen.attacks.search import run
from robustgen.attacks.victim import Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.25)


class Plane(Classifier):
    """Pictures of two pixels a, b: class 1 where a > 1/2, and log p(x) = -a - |b - 1/2|, so that a picture
    is the less likely the more it looks like class 1. Wrong and accepted at threshold -t: 1/2 < a <= t
    - |b - 1/2|, for a picture of class 0."""

    num_classes = 2
    input_shape = (1, 1, 2)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        a = x[:, 0, 0, 0]
        return 10 * torch.stack([0.5 - a, a - 0.5], 1)

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return -x[:, 0, 0, 0] - (x[:, 0, 0, 1] - 0.5).abs()


def detector(t: float) -> ScoreDetector:
    return ScoreDetector(log_prob, -t)


def pictures(n: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures of class 0, all of them accepted at t >= 0.45, and their labels."""
    part = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    a, b = 0.3 + 0.05 * part[:, 0], 0.45 + 0.1 * part[:, 1]
    return torch.stack([a, b], 1).view(n, 1, 1, 2), torch.zeros(n, dtype=torch.long)


def attack(t: float) -> tuple[Tensor, list[str | None]]:
    x, y = pictures()
    model = Plane()
    found = DetectorAware(THREAT, lambda _: detector(t))(model, x, y, Draws(0, "test", torch.arange(len(x))))
    assert bool(THREAT.contains(x, found.images).all())
    assert found.broken_by is not None
    return withstands(model, detector(t), x, y, found.images), found.broken_by


def test_where_every_wrong_picture_is_rejected_the_model_withstands() -> None:
    stands, broken_by = attack(0.499)
    assert bool(stands.all())
    assert broken_by == [None] * 16
    x, y = pictures()
    without = run(apgd(THREAT, "margin"), Victim(Plane()), x, y, Draws(0, "test", torch.arange(16)))
    assert bool(without.broken.all()), "without its detector it would not"


@pytest.mark.parametrize("t", [0.51, 0.6])
def test_a_sliver_of_wrong_and_accepted_pictures_is_found(t: float) -> None:
    stands, broken_by = attack(t)
    assert not bool(stands.any())
    assert None not in broken_by


def test_an_attack_that_does_not_know_of_the_detector_misses_them() -> None:
    x, y = pictures()
    plain = run(apgd(THREAT, "margin"), Victim(Plane()), x, y, Draws(0, "test", torch.arange(16)))
    assert bool(withstands(Plane(), detector(0.51), x, y, plain.images).any())


def test_it_goes_around_a_detector_in_l1_too() -> None:
    threat = ThreatModel("l1", 0.4)
    x, y = pictures()
    search = DetectorEvasion(apgd(threat, "margin"), 1.0)
    view = partial(VictimWithDetector, detector=detector(0.55))
    found = run(search, view(Plane()), x, y, Draws(0, "test", torch.arange(16)))
    assert bool(found.broken.all())
    assert bool(threat.contains(x, found.images).all())


def test_a_rejected_or_wrong_clean_picture_does_not_stand() -> None:
    x = torch.tensor([[0.3, 0.5], [0.3, 0.9], [0.7, 0.5]]).view(3, 1, 1, 2)
    y = torch.zeros(3, dtype=torch.long)
    # accepted and right; rejected; wrong
    assert withstands(Plane(), detector(0.6), x, y, x).tolist() == [True, False, False]
    moved = torch.tensor([[0.55, 0.5], [0.65, 0.5]]).view(2, 1, 1, 2)
    first = x[:1].expand(2, 1, 1, 2)
    # wrong and accepted; wrong and rejected
    assert withstands(Plane(), detector(0.6), first, y[:2], moved).tolist() == [False, True]


@pytest.mark.parametrize(("n", "rejection", "rejected"), [(200, 0.05, 10), (30, 0.05, 1), (10, 0.05, 0)])
def test_the_threshold_rejects_its_share_of_the_calibration_pictures(
    n: int, rejection: float, rejected: int
) -> None:
    images = torch.rand(n, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    found = fit(Plane(), images, rejection=rejection)
    excess = found.excess(Plane(), images)
    assert int((excess < 0).sum()) == rejected
    assert float(excess[excess >= 0].amin()) == 0, "a stricter threshold would reject one more"


def test_confidence_is_a_score_of_every_classifier() -> None:
    images = torch.rand(40, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    found = fit(Plane(), images, confidence)
    least = (images[:, 0, 0, 0] - 0.5).abs().sort().indices[:2]  # nearest to the boundary
    assert set((found.excess(Plane(), images) < 0).nonzero().flatten().tolist()) == set(least.tolist())


class Bare(Classifier):
    """Without log p(x)."""

    num_classes = 2
    input_shape = (1, 1, 2)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return x.flatten(1)


def calibration_pictures() -> SimpleNamespace:
    return SimpleNamespace(images=torch.rand(40, 1, 1, 2, generator=torch.Generator().manual_seed(1)))


def test_a_model_gets_its_detector_once_and_no_sample_pays_for_it() -> None:
    asked = []
    fitted = LazyDetector("log_prob", 0.05, lambda: asked.append(1) or calibration_pictures())
    model = FixedBatch(Plane(), 8)
    model.begin(4)
    found = fitted(model)
    assert found is fitted(model)
    assert asked == [1]
    assert float(model.forwards.sum()) == 0
    assert found == fit(Plane(), calibration_pictures().images)


def test_rows_have_the_detectors_score_and_threshold() -> None:
    fitted = LazyDetector("log_prob", 0.05, calibration_pictures)
    model, (x, _) = FixedBatch(Plane(), 8), pictures()
    model.begin(len(x))
    found = DetectorScore(fitted)(model, x)
    assert found["judged"].tolist() == pytest.approx(Plane().log_prob(x).tolist())
    detector = fitted(model)
    assert detector is not None
    assert set(found["threshold"].tolist()) == {detector.threshold}


def test_a_model_without_the_score_is_left_alone() -> None:
    fitted = LazyDetector("log_prob", 0.05, calibration_pictures)
    model, (x, y) = FixedBatch(Bare(), 8), pictures()
    model.begin(len(x))
    left = DetectorAware(THREAT, fitted)(model, x, y, Draws(0, "test", torch.arange(len(x))))
    assert torch.equal(left.images, x)
    assert not DetectorScore(fitted)(model, x)


def test_a_stochastic_model_has_no_detector_since_one_draw_would_decide() -> None:
    plane = Plane()
    plane.stochastic = True
    assert LazyDetector("log_prob", 0.05, calibration_pictures)(FixedBatch(plane, 8)) is None


def test_what_cannot_be_fitted_is_an_error() -> None:
    images = torch.rand(10, 1, 1, 2)
    with pytest.raises(UnsupportedError, match="no log p"):
        fit(Bare(), images)
    with pytest.raises(UserError, match="NaN or infinite"):
        fit(Plane(), images * torch.nan)
    for wrong in (1.0, -0.1):
        with pytest.raises(UserError, match="cannot be fitted"):
            fit(Plane(), images, rejection=wrong)
