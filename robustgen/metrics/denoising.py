"""Guidance gain of class gradients, and PSNR of denoisers, from summed squared errors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustgen.metrics.calibration import Resampled
from robustgen.metrics.intervals import resampled_sums

Array = np.ndarray


def guidance_gain(table: pd.DataFrame) -> Resampled:
    """G = sum(|x - D_ref|^2 - |x - D_ref - sigma^2 grad log p(label|y)|^2) / sum |x - D_ref|^2; a share.

    ``table``: the rows of one sigma, with ``reference_error`` and ``guided_error`` (squared errors of
    a sample, summed over its pixels). Above 0: the class gradient brings the reference denoiser
    nearer to the clean picture; only the true posterior's gradient attains the most. Higher is better.
    """
    reference, guided = (table[c].to_numpy(np.float64) for c in ("reference_error", "guided_error"))
    sums = resampled_sums(np.stack([reference, guided], 1))
    return Resampled(
        float((reference.sum() - guided.sum()) / reference.sum()), (sums[:, 0] - sums[:, 1]) / sums[:, 0]
    )


def psnr(table: pd.DataFrame, column: str) -> Resampled:
    """-10 log10(MSE) in dB, peak 1, with the squared error pooled over all pixels of all samples.

    ``column`` holds the squared error of a sample, summed over its ``dims`` pixels. Higher is better.
    """
    errors = table[[column, "dims"]].to_numpy(np.float64)
    sums = resampled_sums(errors)
    total = errors.sum(0)
    with np.errstate(divide="ignore"):
        value = -10 * np.log10(total[0] / total[1])
        return Resampled(float(value), -10 * np.log10(sums[:, 0] / sums[:, 1]))


def psnr_gain(table: pd.DataFrame) -> Resampled:
    """PSNR of the model minus the Wiener filter's on the same noisy pictures, in dB; higher is better."""
    own, other = psnr(table, "model_error"), psnr(table, "wiener_error")
    return Resampled(own.value - other.value, own.replicates - other.replicates)
