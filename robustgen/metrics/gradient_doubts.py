"""Flags about the metrics of gradients."""

from __future__ import annotations

from collections.abc import Iterator

from robustgen.metrics.gradient_estimates import efficiency
from robustgen.metrics.rows import Run
from robustgen.types import Flag


def gradient_doubts(run: Run) -> Iterator[Flag]:
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
