"""Every number of a run, with its 95 % interval and with what a paired test needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np
import pandas as pd

from robustgen.metrics import calibration, denoising, ood, verdicts
from robustgen.metrics.calibration import BIASED_UPWARDS, Resampled
from robustgen.metrics.intervals import basic_interval, percentile_interval, wilson
from robustgen.metrics.rows import Evaluation, Rows, Run, log_softmax
from robustgen.threat import ThreatModel
from robustgen.types import Metric

Array = np.ndarray
Statistic = Callable[[Array], Resampled]
NOISE_CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


@dataclass(frozen=True)
class Estimate:
    """A metric and what lies behind it.

    ``ids``: the samples that it was read from, foreign ones as -1 - id; ``right`` bool (n,) for a
    rate; ``resampled`` (1000,), its values over bootstrap resamples of all samples, where they are known
    already; ``again``, the statistic of the samples at some of the places in ``ids``.
    """

    metric: Metric
    ids: Array
    right: Array | None = None
    resampled: Array | None = None
    again: Statistic | None = None

    @cached_property
    def replicates(self) -> Array | None:
        """Values over bootstrap resamples (1000,), which models on the same samples share."""
        if self.resampled is None and self.again is not None:
            return self.again(np.arange(len(self.ids))).replicates
        return self.resampled

    def at(self, places: Array) -> Resampled:
        """The same statistic of the samples at these places of ``ids`` only, in rising order."""
        assert self.replicates is not None
        if len(places) == len(self.ids) or self.again is None:
            return Resampled(self.metric.value, self.replicates)
        return self.again(places)


def measure(run: Run) -> list[Estimate]:
    """All estimates of a run; evaluations without rows are left out."""
    parts = (_clean, _attacks, _worst_cases, _corruptions, _calibration, _foreign, _gradients, _likelihood)
    return [estimate for part in parts for estimate in part(run)]


def _rate(run: Run, evaluation: str, metric: str, ids: Array, right: Array, variant: str = "") -> Estimate:
    """The share of right verdicts with Wilson's interval."""
    successes, n = int(right.sum()), len(right)
    ends = wilson(successes, n)
    return Estimate(
        Metric(run.model, evaluation, variant, metric, successes / n, *ends, n, "", True), ids, right=right,
        again=partial(_mean_of, right.astype(np.float64)),
    )  # fmt: skip


def _accuracy(run: Run, evaluation: str, metric: str, rows: Rows) -> Iterator[Estimate]:
    """The share right: of a stochastic model the mean, then by majority and worst of K."""
    if not rows.stochastic:
        yield _rate(run, evaluation, metric, rows.ids, rows.correct)
        return
    yield _share(run, evaluation, "", metric, rows.ids, rows.share)
    yield _rate(run, evaluation, metric, rows.ids, rows.correct, verdicts.MAJORITY)
    never_wrong = verdicts.worst_of(verdicts.WORST_OF, rows.draws_correct, rows.draws)
    yield _share(run, evaluation, verdicts.WORST, metric, rows.ids, never_wrong)


def _share(run: Run, evaluation: str, variant: str, metric: str, ids: Array, values: Array) -> Estimate:
    """The mean of shares in [0, 1]."""
    ends = verdicts.share_interval(values)
    content = Metric(run.model, evaluation, variant, metric, float(values.mean()), *ends, len(ids), "", True)
    return Estimate(content, ids, again=partial(_mean_of, values))


def _resampled(
    run: Run, evaluation: str, variant: str, metric: str, statistic: Statistic, ids: Array,
    *, found: Resampled | None = None, unit: str = "", higher: bool | None,
) -> Estimate:  # fmt: skip
    """``statistic`` of all samples, which is ``found`` where it is known already."""
    found = found or statistic(np.arange(len(ids)))
    low, high = percentile_interval(found.replicates)
    if metric in BIASED_UPWARDS:
        low, high = basic_interval(found.value, found.replicates)
        low = max(0.0, low)
    content = Metric(run.model, evaluation, variant, metric, found.value, low, high, len(ids), unit, higher)
    return Estimate(content, ids, again=statistic, resampled=found.replicates)


def _clean(run: Run) -> Iterator[Estimate]:
    for evaluation, rows in run.of_kind("clean"):
        yield from _accuracy(run, evaluation.name, "accuracy", rows)


# --- attacks ---------------------------------------------------------------------------------------


def _attacks(run: Run) -> Iterator[Estimate]:
    """Robust accuracy: the share right at the perturbed picture; of a cascade also after each stage
    (by majority, where the model is stochastic)."""
    for evaluation, rows in run.of_kind("attack"):
        yield from _accuracy(run, evaluation.name, "robust_accuracy", rows)
        for stage, right in after_stages(rows, evaluation.detail.get("cascade") or []).items():
            yield _rate(run, evaluation.name, "robust_accuracy", rows.ids, right, stage)


def after_stages(rows: Rows, cascade: list[str]) -> dict[str, Array]:
    """Who is still right after each stage of a cascade, in order: bool (n,) by stage.

    Right after stage k is who is right in the end or was broken by a later stage only. A sample that
    is wrong on the clean picture has no ``broken_by`` and is wrong from the start.
    """
    return {
        stage: rows.correct | np.isin(rows.broken_by.astype(str), cascade[place + 1 :])
        for place, stage in enumerate(cascade)
    }


def _worst_cases(run: Run) -> Iterator[Estimate]:
    """Right under every attack of a norm at no more than eps, and on the clean picture.

    A picture that was found in a smaller ball lies in the larger one too, so the curve against eps
    falls by construction. Read from the samples that all of these attacks have. Of a stochastic model
    by majority alone: a mean would have to choose the worst attack by the draws of its verdict.
    """
    attacks = list(run.of_kind("attack"))
    clean = run.first("clean")
    variant = verdicts.MAJORITY if any(rows.stochastic for _, rows in attacks) else ""
    for norm in sorted({e.detail["norm"] for e, _ in attacks}):
        of_norm = sorted(
            ((e.detail["eps"], rows) for e, rows in attacks if e.detail["norm"] == norm), key=_eps
        )
        everyone = [rows for _, rows in of_norm] + ([clean] if clean else [])
        ids = common_ids(everyone)
        if not len(ids):
            continue
        right = at_ids(clean, ids) if clean else np.ones(len(ids), dtype=bool)
        by_eps: dict[float, Array] = {}
        for eps, rows in of_norm:
            right = right & at_ids(rows, ids)
            by_eps[eps] = right
        for eps, alive in by_eps.items():
            yield _rate(run, worst_name(norm, eps), "robust_accuracy", ids, alive, variant)


def _eps(pair: tuple[float, Rows]) -> float:
    return pair[0]


def worst_name(norm: str, eps: float) -> str:
    """The evaluation name of a worst case.

    >>> worst_name("linf", 0.15)
    'worst-linf-0.15'
    """
    return f"worst-{ThreatModel(norm, eps).slug}"  # type: ignore[arg-type]


def common_ids(several: list[Rows]) -> Array:
    """The sample ids that all have, sorted."""
    ids = several[0].ids
    for rows in several[1:]:
        ids = np.intersect1d(ids, rows.ids)
    return ids


def at_ids(rows: Rows, ids: Array) -> Array:
    """Who of ``ids`` is right, bool (n,)."""
    return rows.correct[np.searchsorted(rows.ids, ids)]


# --- corruptions -----------------------------------------------------------------------------------


def _corruptions(run: Run) -> Iterator[Estimate]:
    """Accuracy of each corruption and severity, and plain means over these cells.

    The means resample pictures, each with all its corrupted versions: versions of one picture are
    not independent.
    """
    cells = list(run.of_kind("corruption"))
    for evaluation, rows in cells:
        yield from _accuracy(run, evaluation.name, "corruption_accuracy", rows)
    noise = [cell for cell in cells if cell[0].detail["type"] in NOISE_CORRUPTIONS]
    other = [cell for cell in cells if cell[0].detail["type"] not in NOISE_CORRUPTIONS]
    for variant, chosen in (("all", cells), ("noise", noise), ("other", other)):
        if chosen:
            yield from _mean_over(run, variant, chosen)


def _mean_over(run: Run, variant: str, cells: list[tuple[Evaluation, Rows]]) -> Iterator[Estimate]:
    ids = common_ids([rows for _, rows in cells])
    if len(ids):
        share = np.mean([rows.share[np.searchsorted(rows.ids, ids)] for _, rows in cells], axis=0)
        mean = partial(_mean_of, share)
        yield _resampled(run, "corruptions", variant, "corruption_accuracy", mean, ids, higher=True)


# --- calibration -----------------------------------------------------------------------------------


def _calibration(run: Run) -> Iterator[Estimate]:
    """ECE, adaptive ECE, NLL and Brier on clean pictures: as is, and with a temperature fitted to the
    calibration split."""
    fitted = run.first("calibration")
    for evaluation, rows in run.of_kind("clean"):
        yield from _calibration_of(run, evaluation.name, "", rows, rows.logits)
        if fitted is None:
            continue
        temperature = calibration.fit_temperature(fitted.logits, fitted.labels)
        yield Estimate(
            Metric(run.model, "calibration", "", "temperature", *temperature, len(fitted), "", None),
            fitted.ids,
        )
        yield from _calibration_of(run, evaluation.name, "temperature", rows, rows.logits / temperature.value)


def _calibration_of(run: Run, name: str, variant: str, rows: Rows, logits: Array) -> Iterator[Estimate]:
    log_p = log_softmax(logits)
    p, labels = np.exp(log_p), rows.labels
    statistics: dict[str, Statistic] = {
        "ece": lambda k: calibration.ece(p[k], labels[k]),
        "adaptive_ece": lambda k: calibration.adaptive_ece(p[k], labels[k]),
        "nll": lambda k: calibration.nll(log_p[k], labels[k]),
        "brier": lambda k: calibration.brier(p[k], labels[k]),
    }
    for metric, statistic in statistics.items():
        unit = "nats" if metric == "nll" else ""
        yield _resampled(run, name, variant, metric, statistic, rows.ids, unit=unit, higher=False)


# --- foreign pictures ------------------------------------------------------------------------------


def _foreign(run: Run) -> Iterator[Estimate]:
    """Own (the clean rows) against foreign pictures, by every score that both have."""
    clean = run.first("clean")
    if clean is None:
        return
    own = ood.scores(clean)
    for evaluation, rows in run.of_kind("ood"):
        ids = np.concatenate([clean.ids, -1 - rows.ids])
        for score, foreign in ood.scores(rows).items():
            if score not in own:
                continue
            found = ood.resampled(own[score], foreign)
            for metric in ood.Detection._fields:
                again = partial(_detection_at, own[score], foreign, metric)
                yield _resampled(
                    run, evaluation.name, score, metric, again, ids,
                    found=found[metric], higher=not metric.startswith("fpr95"),
                )  # fmt: skip


def _detection_at(own: Array, foreign: Array, metric: str, places: Array) -> Resampled:
    chosen, others = places[places < len(own)], places[places >= len(own)] - len(own)
    return ood.resampled(own[chosen], foreign[others])[metric]


# --- gradients and likelihood ----------------------------------------------------------------------


def _gradients(run: Run) -> Iterator[Estimate]:
    """Guidance gain, PSNR of the denoisers, and PSNR above the Wiener filter, at each sigma."""
    for evaluation, table in run.guidance.items():
        for sigma, part in table.sort_values(["sigma", "sample_id"]).groupby("sigma"):
            yield from _at_sigma(run, evaluation, f"sigma-{sigma:g}", part)


def _at_sigma(run: Run, evaluation: str, sigma: str, part: pd.DataFrame) -> Iterator[Estimate]:
    guided = part.dropna(subset="guided_error")
    if len(guided):
        ids = guided["sample_id"].to_numpy()
        gain = partial(_of_rows, guided, denoising.guidance_gain)
        yield _resampled(run, evaluation, sigma, "guidance_gain", gain, ids, higher=True)
    for who in ("model", "wiener", "reference"):
        known = part.dropna(subset=f"{who}_error")
        if len(known):
            psnr = partial(_of_rows, known, partial(denoising.psnr, column=f"{who}_error"))
            ids = known["sample_id"].to_numpy()
            yield _resampled(run, evaluation, f"{who}-{sigma}", "psnr", psnr, ids, unit="dB", higher=True)
    both = part.dropna(subset=["model_error", "wiener_error"])
    if len(both):
        gain, ids = partial(_of_rows, both, denoising.psnr_gain), both["sample_id"].to_numpy()
        yield _resampled(run, evaluation, sigma, "psnr_gain", gain, ids, unit="dB", higher=True)


def _of_rows(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], Resampled], places: Array) -> Resampled:
    return statistic(table.iloc[places])


def _likelihood(run: Run) -> Iterator[Estimate]:
    """Bits per dimension of 8-bit pictures, only where log p(x) is a density or a bound of one.

    -log p(x) / (d ln 2) + 8: nats of x in [0, 1]^d, with 256 levels a pixel. Lower is better.
    """
    if run.spec["model"].get("density") not in ("exact", "lower_bound"):
        return
    dims = math.prod(run.spec["data"]["shape"])
    for evaluation, rows in run.of_kind("clean"):
        if np.isfinite(rows.log_prob).all():
            bits = 8 - rows.log_prob / (dims * math.log(2))
            statistic = partial(_mean_of, bits)
            yield _resampled(
                run, evaluation.name, "", "bits_per_dim", statistic, rows.ids, unit="bits", higher=False
            )


def _mean_of(values: Array, places: Array) -> Resampled:
    return calibration.mean(values[places])


def is_finite(metric: Metric) -> bool:
    """Whether a number can stand in a report: its value and, where it has one, its interval."""
    values = [getattr(metric, f.name) for f in fields(metric) if f.name in ("value", "ci_low", "ci_high")]
    return all(math.isfinite(value) for value in values)
