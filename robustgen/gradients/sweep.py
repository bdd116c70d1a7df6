"""The readout for gradient efficiency: guidance gain and cross-entropy over many noise levels.

For the true posterior, each determines the other (I-MMSE, Guo, Shamai and Verdu 2005): with gamma = 1 /
sigma^2, I(x; y) - I(x; y | label) is the information about the label, I(label; y), so that

    d(-E[-log p(label | y)]) / d gamma = G / 2,

where G is the guidance gain in squared pixel units, summed over the image: see guidance.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.gradients.guidance import (
    denoise_in_batches,
    log_prob_and_gradient,
    squared_norms,
    within_levels,
)
from robustgen.perturb import Readout

if TYPE_CHECKING:
    import pyarrow

    from robustgen.draws import Draws


class Sweep(Readout):
    """Errors and cross-entropy, one row per (sample, sigma).

    ``sigmas``: noise levels in pixel units, all with the same noise sample, so that differences between
    levels are due to the level alone; ``reference``: see Guidance.
    """

    name = "sweep"

    def __init__(self, sigmas: Sequence[float], reference: Denoiser) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.reference = reference

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """x (batch, channels, height, width) in [0, 1], labels y (batch,); levels that the model does not
        support are left out."""
        import pyarrow

        self.reference.to(x.device)
        noise = draws.normal(*x.shape[1:]).to(x)
        schema = pyarrow.schema(
            [("sample_id", pyarrow.int64()), ("sigma", pyarrow.float64())]
            + [(name, pyarrow.float64()) for name in ("reference_error", "guided_error", "cross_entropy")]
        )
        tables = [schema.empty_table()]
        for sigma in self.sigmas:
            if not within_levels(model, sigma):
                continue
            noisy = x + sigma * noise
            reference = denoise_in_batches(self.reference, noisy, sigma, model)
            log_p, gradient = log_prob_and_gradient(model, noisy, y, sigma)
            columns = {
                "sample_id": draws.sample_ids,
                "sigma": [sigma] * len(x),
                "reference_error": squared_norms(x - reference),
                "guided_error": squared_norms(x - reference - sigma**2 * gradient),
                "cross_entropy": (-log_p).double().tolist(),
            }
            tables.append(pyarrow.table(columns, schema=schema))
        return pyarrow.concat_tables(tables)
