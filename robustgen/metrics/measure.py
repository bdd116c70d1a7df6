"""``measure``: every metric of a run as an Estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from robustgen.audit import AUDIT
from robustgen.metrics import verdicts
from robustgen.metrics.calibration_estimates import calibration_estimates
from robustgen.metrics.corruption_estimates import corruption_estimates
from robustgen.metrics.detector_estimates import detector_estimates
from robustgen.metrics.estimate import Estimate, accuracy, mean_of, rate, resampled
from robustgen.metrics.gradient_estimates import gradient_estimates
from robustgen.metrics.ood_estimates import ood_estimates
from robustgen.metrics.rows import Evaluation, Rows, Run, aligned
from robustgen.threat import worst_name
from robustgen.types import ADDED, Metric

Array = np.ndarray


def measure(run: Run) -> list[Estimate]:
    """All estimates of a run; evaluations without rows have none."""
    parts = (
        _clean,
        _attacks,
        _worst_cases,
        detector_estimates,
        corruption_estimates,
        calibration_estimates,
        ood_estimates,
        gradient_estimates,
        _likelihood,
    )
    return [estimate for part in parts for estimate in part(run)]


def _clean(run: Run) -> Iterator[Estimate]:
    for evaluation, rows in run.of_kind("clean"):
        yield from accuracy(run, evaluation.name, "accuracy", rows)


# --- attacks ---------------------------------------------------------------------------------------


def _attacks(run: Run) -> Iterator[Estimate]:
    """Robust accuracy: the accuracy on the perturbed pictures; of a cascade also after each stage (by
    majority, if the model is stochastic)."""
    for evaluation, rows in run.of_kind("attack"):
        yield from accuracy(run, evaluation.name, "robust_accuracy", rows)
        for stage, right in after_stages(rows, evaluation.detail.get("cascade") or []).items():
            yield rate(run, evaluation.name, stage, "robust_accuracy", rows.ids, right)


def after_stages(rows: Rows, cascade: list[str]) -> dict[str, Array]:
    """Which samples are still correct after each stage of a cascade, in order: bool (n,) by stage.

    After stage k these are the samples that are correct in the end or that a later stage broke; the audit is
    the last. A sample that is wrong on the clean picture has no ``broken_by``, so it is wrong throughout.
    """
    return {
        stage: rows.correct | np.isin(rows.broken_by.astype(str), [*cascade[place + 1 :], AUDIT])
        for place, stage in enumerate(cascade)
    }


def _worst_cases(run: Run) -> Iterator[Estimate]:
    """Accuracy under the worst case: correct on the clean picture and under every attack of a norm up to eps.

    A picture within a smaller eps is also within a larger one, so the curve against eps never rises. Computed
    on the samples that all of these attacks have. For a stochastic model by majority only: for a mean, the
    worst attack would be chosen by the draws of its own verdict.
    """
    attacks = list(run.of_kind("attack"))
    clean = run.first("clean")
    variant = verdicts.MAJORITY if any(rows.stochastic for _, rows in attacks) else ""
    for norm in sorted({e.detail["norm"] for e, _ in attacks}):
        of_norm = sorted(((e, rows) for e, rows in attacks if e.detail["norm"] == norm), key=_eps)
        # added pictures may cover fewer samples: they can break a sample but do not restrict the set
        everyone = [rows for e, rows in of_norm if ADDED not in e.detail] + ([clean] if clean else [])
        if not everyone:
            continue
        ids = aligned(*everyone)[0].ids
        if not len(ids):
            continue
        right = clean.of(ids).correct if clean else np.ones(len(ids), dtype=bool)
        by_name: dict[str, Array] = {}  # 3 * 0.1 and 0.3 are different floats of one name
        for evaluation, rows in of_norm:
            right = right & ~np.isin(ids, rows.ids[~rows.correct])
            by_name[worst_name(norm, evaluation.detail["eps"])] = right
        for name, alive in by_name.items():
            yield rate(run, name, variant, "robust_accuracy", ids, alive)


def _eps(pair: tuple[Evaluation, Rows]) -> float:
    return float(pair[0].detail["eps"])


# --- likelihood ------------------------------------------------------------------------------------


def _likelihood(run: Run) -> Iterator[Estimate]:
    """Bits per dimension of 8-bit pictures, where log p(x) is a density or a lower bound of one.

    -log p(x) / (d ln 2) + 8: nats of x in [0, 1]^d, with 256 levels a pixel. Lower is better.
    """
    if run.spec["model"].get("density") not in ("exact", "lower_bound"):
        return
    dims = math.prod(run.spec["data"]["shape"])
    for evaluation, rows in run.of_kind("clean"):
        if np.isfinite(rows.log_prob).all():
            bits = 8 - rows.log_prob / (dims * math.log(2))
            statistic = partial(mean_of, bits)
            yield resampled(
                run, evaluation.name, "", "bits_per_dim", statistic, rows.ids, unit="bits", higher=False
            )


def is_finite(metric: Metric) -> bool:
    """Whether a metric's value and interval are finite."""
    return all(map(math.isfinite, (metric.value, metric.ci_low, metric.ci_high)))
