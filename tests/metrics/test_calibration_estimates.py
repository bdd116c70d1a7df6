"""Classwise errors and Brier's parts against torchmetrics and Murphy; calibration of corrupted pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_measure import rows_of

from robustgen.metrics import calibration
from robustgen.metrics.calibration_estimates import calibration_estimates
from robustgen.metrics.comparisons import Key
from robustgen.metrics.intervals import resamples
from robustgen.metrics.rows import Evaluation, Rows, Run, log_softmax
from robustgen.types import Metric

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (300, 7))
LABELS = np.where(RNG.random(300) < 0.7, LOGITS.argmax(1), RNG.integers(7, size=300))
P = np.exp(log_softmax(LOGITS))


@pytest.mark.parametrize("saturated", [False, True])
def test_classwise_ece_is_torchmetrics_class_by_class(saturated: bool) -> None:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    p = P.astype(np.float32)
    if saturated:
        p[:100] = np.eye(7, dtype=np.float32)[LABELS[:100] % 6]
    per_class = [
        float(binary_calibration_error(torch.tensor(p[:, c]), torch.tensor(c == LABELS).long(), n_bins=15))
        for c in range(7)
    ]
    found = calibration.classwise_ece(p.astype(np.float64), LABELS)
    assert found.value == pytest.approx(np.mean(per_class), abs=1e-6)


def test_briers_parts_are_murphys_where_forecasts_repeat() -> None:
    # 4 different forecasts, so that a bin holds one value and Murphy's sums are exact
    kinds = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.38, 0.38, 0.24], [0.1, 0.27, 0.63]])
    which = RNG.integers(4, size=400)
    labels = (kinds[which].cumsum(1) > RNG.random((400, 1))).argmax(1)
    base = np.bincount(labels, minlength=3) / 400
    reliability = resolution = 0.0
    for c in range(3):
        for value in np.unique(kinds[:, c]):
            of_it = kinds[which, c] == value
            share = (labels[of_it] == c).mean()
            reliability += of_it.mean() * (value - share) ** 2
            resolution += of_it.mean() * (share - base[c]) ** 2
    found = calibration.brier_parts(kinds[which], labels)
    assert found["brier_reliability"].value == pytest.approx(reliability, abs=1e-9)
    assert found["brier_resolution"].value == pytest.approx(resolution, abs=1e-9)
    assert found["brier_uncertainty"].value == pytest.approx((base * (1 - base)).sum(), abs=1e-12)


def test_the_parts_add_up_for_any_forecasts_and_in_every_resample() -> None:
    parts, score = calibration.brier_parts(P, LABELS), calibration.brier(P, LABELS)
    for of in (lambda r: r.value, lambda r: r.replicates):
        reliability, resolution, uncertainty = (of(part) for part in parts.values())
        assert reliability - resolution + uncertainty == pytest.approx(of(score), abs=1e-12)
    # Stephenson's two terms: what forecasts vary within their bins, and how labels go along
    within = cross = murphy = 0.0
    for c in range(7):
        bins, y = calibration.width_bins(P[:, c]), c == LABELS
        for b in np.unique(bins):
            p, seen = P[bins == b, c], y[bins == b]
            within += ((p - p.mean()) ** 2).sum() / 300
            cross += 2 * ((p - p.mean()) * (seen - seen.mean())).sum() / 300
            murphy += len(p) * (seen.mean() - y.mean()) ** 2 / 300
    assert parts["brier_resolution"].value == pytest.approx(murphy - within + cross, abs=1e-12)


STATISTICS = {
    "ece": calibration.ece,
    "classwise_ece": calibration.classwise_ece,
    "brier": calibration.brier,
    "brier_reliability": lambda p, y, v=1: calibration.brier_parts(p, y, v)["brier_reliability"],
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("versions", [1, 3])
def test_pictures_are_resampled_with_all_their_versions(name: str, versions: int) -> None:
    statistic, n = STATISTICS[name], 300 // versions
    found = statistic(P, LABELS, versions)
    assert found.value == pytest.approx(statistic(P, LABELS).value)
    pictures = np.repeat(np.arange(n), resamples(n)[4])
    again = (pictures[:, None] * versions + np.arange(versions)).ravel()
    assert found.replicates[4] == pytest.approx(statistic(P[again], LABELS[again]).value)


# --- of a run ----------------------------------------------------------------------------------------


def evaluation(name: str, kind: str, rows: Rows, **detail: str) -> tuple[str, Evaluation]:
    return name, Evaluation({"name": name, "kind": kind, **detail}, rows, len(rows))


def rows(logits: np.ndarray, labels: np.ndarray, ids: np.ndarray | None = None) -> Rows:
    made = rows_of(logits, labels, np.ones(len(labels), int), logits.argmax(1) == labels)
    return made if ids is None else replace(made, ids=ids)


def measured(*parts: tuple[str, Evaluation]) -> dict[Key, Metric]:
    found = [e.metric for e in calibration_estimates(Run("m", {"model": {}}, dict(parts)))]
    return {Key(m.evaluation, m.variant, m.metric): m for m in found}


def test_corrupted_pictures_are_pooled_and_a_temperature_is_applied_to_all() -> None:
    first, second = LOGITS[:100] + RNG.normal(0, 2, (100, 7)), LOGITS[:100] + RNG.normal(0, 4, (100, 7))
    fewer = rows(second[10:], LABELS[10:100], np.arange(10, 100))
    found = measured(
        evaluation("clean", "clean", rows(LOGITS[:100], LABELS[:100])),
        evaluation("calibration", "calibration", rows(LOGITS[100:], LABELS[100:])),
        evaluation("noise-1", "corruption", rows(first, LABELS[:100]), type="noise"),
        # which lacks ten pictures: only what both have is pooled
        evaluation("noise-2", "corruption", fewer, type="noise"),
        evaluation("c-noise-1", "corruption", rows(second, LABELS[:100]), type="imagenet-c:noise"),
    )
    t = found[Key("calibration", "", "temperature")].value
    both, labels = np.concatenate([first[10:], second[10:]]), np.tile(LABELS[10:100], 2)
    for variant, scale in (("all", 1.0), ("all-temperature", t)):
        p = np.exp(log_softmax(both / scale))
        metric = found[Key("corruptions", variant, "ece")]
        assert metric.value == pytest.approx(calibration.ece(p, labels).value)
        assert metric.n == 90
        assert found[Key("corruptions", variant, "brier")].value == pytest.approx(
            calibration.brier(p, labels).value
        )
        assert Key("corruptions", variant, "aurc") in found
        alone = calibration.ece(np.exp(log_softmax(second / scale)), LABELS[:100]).value
        assert found[Key("corruptions-imagenet-c", variant, "ece")].value == pytest.approx(alone)
    assert Key("clean", "temperature", "classwise_ece") in found
    assert all(m.ci_low <= m.value <= m.ci_high for m in found.values())


def test_calibration_under_attack_is_read_of_a_fixed_attack_on_the_label_alone() -> None:
    attacked = rows(LOGITS - 2 * np.eye(7)[LABELS], LABELS)
    found = measured(
        evaluation("clean", "clean", rows(LOGITS, LABELS)),
        evaluation("pgd", "attack", attacked),
        evaluation("fixed-label", "fixed", attacked, objective="label"),
        evaluation("fixed-energy", "fixed", attacked, objective="energy"),
    )
    assert {key.evaluation for key in found} == {"clean", "fixed-label"}
    assert found[Key("fixed-label", "", "ece")].value > found[Key("clean", "", "ece")].value
