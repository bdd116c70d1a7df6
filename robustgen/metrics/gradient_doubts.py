"""Flags about the metrics of gradients."""

from __future__ import annotations

from collections.abc import Iterator

from robustgen.metrics.gradient_estimates import efficiency
from robustgen.metrics.intervals import Z95
from robustgen.metrics.rows import Run
from robustgen.types import Flag


def gradient_doubts(run: Run) -> Iterator[Flag]:
    """The flags of a run's class gradients."""
    yield from _no_gradient(run)
    yield from _weak_reference(run)
    yield from _too_efficient(run)


def _no_gradient(run: Run) -> Iterator[Flag]:
    """Without a gradient nothing is added to the reference denoiser, and nothing made worse."""
    for evaluation, table in run.tables("gradients"):
        norms = table["guidance_norm"].dropna()
        if len(norms) and (norms == 0).all():
            yield Flag(
                run.model, evaluation, "zero_gradients", "warning",
                "The class gradient is exactly 0 at every picture and noise level: a gain of 0 says nothing "
                "here. Look for rounding, no_grad() or detach() in the model.",
            )  # fmt: skip


def _weak_reference(run: Run) -> Iterator[Flag]:
    """A gain over a denoiser that even the best linear one equals may be that denoiser's error, put right."""
    for evaluation, table in run.tables("gradients"):
        for sigma, part in table.groupby("sigma"):
            less = (part["wiener_error"] - part["reference_error"]).dropna()
            if less.mean() <= Z95 * less.sem():
                yield Flag(
                    run.model, evaluation, "weak_reference", "info",
                    f"At σ {sigma:g} the reference denoiser is not surely better than a Wiener filter, so "
                    "that a gain may be its error, put right. Take a better reference, or more pictures.",
                )  # fmt: skip


def _too_efficient(run: Run) -> Iterator[Flag]:
    """Efficiency above 1, which is impossible if the reference denoiser is the posterior mean; if it is not,
    part of the gain is the reference's own error, which the gradient corrects."""
    for estimate in efficiency(run):
        metric = estimate.metric
        if metric.metric == "gradient_efficiency" and metric.ci_low > 1:
            yield Flag(
                run.model, metric.evaluation, "efficiency_above_one", "warning",
                f"Gradient efficiency is {metric.value:.2f} ({metric.ci_low:.2f} to {metric.ci_high:.2f}), "
                "where the true posterior's is 1. The reference denoiser is worse than this model, or the "
                "model's probabilities are inaccurate: use a better reference denoiser.",
            )  # fmt: skip
