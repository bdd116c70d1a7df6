"""Metrics of class gradients, from the tables of the gradient readouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from robustgen.metrics import denoising, gradient_statistics
from robustgen.metrics.calibration import Resampled
from robustgen.metrics.estimate import Estimate, mean_of, resampled
from robustgen.metrics.intervals import percentile_interval
from robustgen.metrics.rows import Run

Array = np.ndarray


def gradient_estimates(run: Run) -> Iterator[Estimate]:
    """Guidance gain, PSNR of the denoisers and PSNR gain over the Wiener filter at each sigma; gradient
    efficiency; agreement of gradients, and the nearest wrong pictures."""
    for evaluation, table in run.tables("gradients"):
        for sigma, part in table.sort_values(["sigma", "sample_id"]).groupby("sigma"):
            yield from _at_sigma(run, evaluation, f"sigma-{sigma:g}", part)
    yield from efficiency(run)
    for evaluation, table in run.tables("explained"):
        ordered = table.sort_values(["sigma", "sample_id"])
        for sigma, part in ordered.groupby("sigma"):
            yield from _spanned(run, evaluation, f"sigma-{sigma:g}", part)
            yield from _agreement(run, evaluation, f"sigma-{sigma:g}", part)
        if len(ordered):
            yield from _radius(run, evaluation, ordered[ordered["sigma"] == ordered["sigma"].min()])


def _at_sigma(run: Run, evaluation: str, sigma: str, part: pd.DataFrame) -> Iterator[Estimate]:
    known = part.dropna(subset="guided_error")
    if len(known):
        ids = known["sample_id"].to_numpy()
        gain = partial(_of_rows, known, denoising.guidance_gain)
        yield resampled(run, evaluation, sigma, "guidance_gain", gain, ids, higher=True)
    for who in ("model", "wiener", "reference"):
        known = part.dropna(subset=f"{who}_error")
        if len(known):
            psnr = partial(_of_rows, known, partial(denoising.psnr, column=f"{who}_error"))
            ids = known["sample_id"].to_numpy()
            yield resampled(run, evaluation, f"{who}-{sigma}", "psnr", psnr, ids, unit="dB", higher=True)
    both = part.dropna(subset=["model_error", "wiener_error"])
    if len(both):
        gain, ids = partial(_of_rows, both, denoising.psnr_gain), both["sample_id"].to_numpy()
        yield resampled(run, evaluation, sigma, "psnr_gain", gain, ids, unit="dB", higher=True)


def efficiency(run: Run) -> Iterator[Estimate]:
    """Both sides of I-MMSE in nats, and their ratio if the 95 % interval of the second is above 0."""
    for evaluation, table in run.tables("efficiency"):
        yield from _efficiency(run, evaluation, table)


def _efficiency(run: Run, evaluation: str, table: pd.DataFrame) -> Iterator[Estimate]:
    sides = gradient_statistics.information(table)
    if sides is None:
        return
    for metric, values in (("gradient_information", sides.gradient), ("label_information", sides.label)):
        mean = partial(mean_of, values)
        yield resampled(run, evaluation, "", metric, mean, sides.ids, unit="nats", higher=True)
    least = gradient_statistics.ratio(sides.label, np.ones(len(sides.label)), np.arange(len(sides.ids)))
    if percentile_interval(least.value, least.replicates).low > 0:
        efficiency = partial(gradient_statistics.ratio, sides.gradient, sides.label)
        yield resampled(run, evaluation, "", "gradient_efficiency", efficiency, sides.ids, higher=True)


def _spanned(run: Run, evaluation: str, sigma: str, part: pd.DataFrame) -> Iterator[Estimate]:
    moved = part.dropna(subset=["share", "random_share"])
    for metric, column in (("span_share", "share"), ("random_span_share", "random_share")):
        if len(moved):
            mean, ids = partial(mean_of, moved[column].to_numpy()), moved["sample_id"].to_numpy()
            yield resampled(run, evaluation, sigma, metric, mean, ids, higher=None)


def _agreement(run: Run, evaluation: str, sigma: str, part: pd.DataFrame) -> Iterator[Estimate]:
    known = part.dropna(subset=["agreement_dot", "gradient_square", "difference_square"])
    known = known[(known["gradient_square"] > 0) & (known["difference_square"] > 0)]
    for metric, statistic in (
        ("branch_cosine", gradient_statistics.cosine),
        ("branch_relative_error", gradient_statistics.relative_error),
    ):
        if len(known):
            again, ids = partial(_of_rows, known, statistic), known["sample_id"].to_numpy()
            yield resampled(run, evaluation, sigma, metric, again, ids, higher=metric == "branch_cosine")


def _radius(run: Run, evaluation: str, part: pd.DataFrame) -> Iterator[Estimate]:
    """The first-order radius against the distance found, for samples that are correct on the clean picture.

    In medians a sample without a wrong picture has an infinite distance; a median that is infinite in any
    resample is left out.
    """
    right = part.dropna(subset=["margin", "first_order"])
    right = right.assign(distance=right["distance"].fillna(np.inf))
    right = right[(right["margin"] > 0) & (right["distance"] > 0)]
    found = right[np.isfinite(right["distance"])]
    for metric, statistic, higher, known in (
        ("radius_correlation", gradient_statistics.rank_correlation, True, found),
        ("radius_partial_correlation", gradient_statistics.partial_rank_correlation, True, found),
        ("margin_correlation", gradient_statistics.margin_correlation, None, found),
        ("radius_ratio", gradient_statistics.median_ratio, None, right),
        ("minimal_distance", gradient_statistics.median_distance, True, right),
    ):
        if len(known) < gradient_statistics.FEWEST:
            continue
        again, ids = partial(_of_rows, known, statistic), known["sample_id"].to_numpy()
        value = again(np.arange(len(ids)))
        if np.isfinite(value.replicates).all():
            yield resampled(run, evaluation, "", metric, again, ids, found=value, higher=higher)


def _of_rows(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], Resampled], places: Array) -> Resampled:
    return statistic(table.iloc[places])
