"""Accuracy under corruption: for each cell (a type at a severity), and averaged over cells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from robustgen.metrics.calibration import Resampled
from robustgen.metrics.estimate import Estimate, accuracy, resampled, share
from robustgen.metrics.intervals import RESAMPLES, basic_interval, resampled_sums
from robustgen.metrics.rows import Evaluation, Rows, Run, aligned

Array = np.ndarray
Cells = list[tuple[Evaluation, Rows]]
NOISE_CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
COMMON = 15
"""The number of types of CIFAR-10-C without its four extra ones."""


def corruption_estimates(run: Run) -> Iterator[Estimate]:
    """Accuracy of each cell, and its mean over all cells, over those of noise and over the others.

    With at least COMMON types also the mean of each type over its severities, and the lowest of these. Types
    with a prefix (imagenet-c) are averaged separately. The bootstrap resamples pictures, each with all its
    corrupted versions, which are not independent.
    """
    for evaluation, rows in run.of_kind("corruption"):
        yield from accuracy(run, evaluation.name, "corruption_accuracy", rows)
    for name, chosen in families(run).items():
        yield from _means(run, name, chosen)


def families(run: Run) -> dict[str, Cells]:
    """The cells that are averaged together, by the name of their mean: types without and with a prefix."""
    found: dict[str, Cells] = {}
    for evaluation, rows in run.of_kind("corruption"):
        family = evaluation.detail["type"].rpartition(":")[0]
        found.setdefault(f"corruptions-{family}" if family else "corruptions", []).append((evaluation, rows))
    return dict(sorted(found.items()))


def _means(run: Run, name: str, cells: Cells) -> Iterator[Estimate]:
    noise = [cell for cell in cells if _type(cell) in NOISE_CORRUPTIONS]
    other = [cell for cell in cells if _type(cell) not in NOISE_CORRUPTIONS]
    parts = {"all": cells, "noise": noise, "other": other}
    types = list(dict.fromkeys(_type(cell) for cell in cells))
    if len(types) >= COMMON:
        parts |= {type_: [cell for cell in cells if _type(cell) == type_] for type_ in types}
    for variant, chosen in parts.items():
        if not chosen:
            continue
        ids, shares = _shares(chosen)
        if len(ids):
            yield share(run, name, variant, "corruption_accuracy", ids, shares.mean(1))
    ids, shares = _shares(cells)
    if len(types) >= COMMON and len(ids):
        by_type = np.stack([shares[:, [_type(c) == type_ for c in cells]].mean(1) for type_ in types], 1)
        # of several types that are equally hard one is the lowest by chance, in every resample once more
        yield resampled(
            run, name, "worst", "corruption_accuracy", partial(_least_mean, by_type), ids,
            rule=basic_interval, higher=True,
        )  # fmt: skip


def relative_errors(runs: list[Run], baseline: str) -> Iterator[Estimate]:
    """The corruption error of each model relative to that of the baseline model (mCE): the mean over types c
    of sum_s E[s, c] / sum_s E_baseline[s, c].

    In Hendrycks and Dietterich (2019) the baseline is AlexNet; CIFAR-10-C has none, so it is a model of the
    same report. 1 is as good as the baseline, lower is better. A type without errors of the baseline is left
    out; in a resample without its errors too.
    """
    known = {run.model: run for run in runs}
    if baseline not in known:
        return
    theirs = _plain_cells(known[baseline])
    for run in runs:
        ours = _plain_cells(run)
        shared = [name for name in ours if name in theirs]
        if run.model == baseline or not shared:
            continue
        ids, shares = _shares([cells[name] for cells in (ours, theirs) for name in shared])
        if not len(ids):
            continue
        type_of = np.array([_type(ours[name]) for name in shared])
        by_type = [
            np.stack([wrong[:, type_of == type_].sum(1) for type_ in dict.fromkeys(type_of)], 1)
            for wrong in np.split(1 - shares, 2, axis=1)
        ]
        found = resampled(
            run, "corruptions", f"vs-{baseline}", "relative_corruption_error",
            partial(_mean_ratio, *by_type), ids, higher=False,
        )  # fmt: skip
        if np.isfinite(found.metric.ci_low):
            yield found


def _plain_cells(run: Run) -> dict[str, tuple[Evaluation, Rows]]:
    return {e.name: (e, rows) for e, rows in run.of_kind("corruption") if ":" not in e.detail["type"]}


def _type(cell: tuple[Evaluation, Rows]) -> str:
    return str(cell[0].detail["type"]).rpartition(":")[2]


def _shares(cells: Cells) -> tuple[Array, Array]:
    """Ids (n,) of the samples that all cells have, and their shares of correct draws (n, cells)."""
    same = aligned(*(rows for _, rows in cells))
    return same[0].ids, np.stack([rows.share for rows in same], 1)


def _least_mean(by_type: Array, places: Array) -> Resampled:
    chosen = by_type[places]
    return Resampled(float(chosen.mean(0).min()), (resampled_sums(chosen) / len(chosen)).min(1))


def _mean_ratio(ours: Array, theirs: Array, places: Array) -> Resampled:
    """The mean over types of the ratio of two models' errors (n, types), which are summed over severities."""
    known = theirs[places].sum(0) > 0
    if not known.any():
        return Resampled(float("nan"), np.full(RESAMPLES, np.nan))
    ours, theirs = ours[places][:, known], theirs[places][:, known]
    with np.errstate(divide="ignore", invalid="ignore"):
        again = resampled_sums(ours) / resampled_sums(theirs)
        errs = np.isfinite(again)  # not in a resample in which the baseline never errs at a type
        means = np.where(errs, again, 0).sum(1) / errs.sum(1)
    return Resampled(float((ours.sum(0) / theirs.sum(0)).mean()), means)
