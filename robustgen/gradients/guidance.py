"""The readout of guidance: by how much grad log p(label | noisy image) improves a denoiser, at each sigma.

With y = x + sigma n and a separately trained reference denoiser D_ref, Tweedie's formula and Bayes' rule give
E[x | y, label] = E[x | y] + sigma^2 grad log p(label | y). So a classifier's gradient is judged by how much
it lowers the error of the reference:

    guidance gain G = E|x - D_ref(y)|^2 - E|x - D_ref(y) - sigma^2 grad log p(label | y)|^2.

If D_ref is the posterior mean, only the gradient of the true posterior maximises G. The table holds both
errors of each sample; the gain and its interval are metrics over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.perturb import Readout
from robustgen.types import ConditionalNoise

if TYPE_CHECKING:
    import pyarrow

    from robustgen.draws import Draws


class Guidance(Readout):
    """Guidance and denoising errors, one row per (sample, sigma).

    ``sigmas``: noise levels in pixel units; ``reference``: the denoiser that the gradients guide;
    ``wiener``: the baseline for denoising; ``pictures``: images are stored for samples with an id below this,
    and only at the middle noise level, which the page shows, since they take most of the space.
    """

    name = "guidance"

    def __init__(self, sigmas: Sequence[float], reference: Denoiser, wiener: Denoiser, pictures: int) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.reference = reference
        self.wiener = wiener
        self.pictures = pictures
        self.pictured_sigma = sorted(self.sigmas)[len(self.sigmas) // 2] if self.sigmas else None

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """A table with the columns of ``schema()``; errors are |x - estimate|^2, summed over ``dims`` pixels.

        ``x`` (batch, channels, height, width) in [0, 1]; ``y`` labels (batch,). New noise is drawn for each
        sigma, and noisy images are not clipped, which would make the noise non-Gaussian.
        """
        import pyarrow

        for denoiser in (self.reference, self.wiener):
            denoiser.to(x.device)
        tables = [self._table(sigma, model, x, y, draws) for sigma in self.sigmas]
        return pyarrow.concat_tables(tables) if tables else schema().empty_table()

    def _table(self, sigma: float, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:

        noisy = x + sigma * draws.normal(*x.shape[1:]).to(x)
        reference = denoise_in_batches(self.reference, noisy, sigma, model)
        in_levels = isinstance(model.noise, ConditionalNoise) and sigma in model.noise
        guidance = own = None
        if within_levels(model, sigma):
            guidance = sigma**2 * class_gradient(model, noisy, y, sigma)
        if in_levels and "denoise" in model.supports:
            own = model.denoise(noisy, sigma)
        columns = {
            "sample_id": draws.sample_ids,
            "sigma": [sigma] * len(x),
            "reference_error": squared_norms(x - reference),
            "guided_error": None if guidance is None else squared_norms(x - reference - guidance),
            "model_error": None if own is None else squared_norms(x - own),
            "wiener_error": squared_norms(x - denoise_in_batches(self.wiener, noisy, sigma, model)),
            "guidance_norm": None if guidance is None else [s**0.5 for s in squared_norms(guidance)],
            "dims": [x[0].numel()] * len(x),
        }
        if sigma == self.pictured_sigma:
            pictures = {"noisy": noisy, "reference": reference}
            pictures |= {} if guidance is None else {"guidance": guidance}
            columns |= {
                name: first_pictures(images, draws, self.pictures) for name, images in pictures.items()
            }
        return with_nulls(columns, schema(), len(x))


def with_nulls(columns: dict[str, Any], layout: pyarrow.Schema, rows: int) -> pyarrow.Table:
    """A table of this schema; columns that are missing or None are filled with nulls."""
    import pyarrow

    nulls = [None] * rows
    filled = {name: nulls if columns.get(name) is None else columns[name] for name in layout.names}
    return pyarrow.table(filled, schema=layout)


def first_pictures(images: Tensor, draws: Draws, most: int) -> list[list[float] | None]:
    """The flattened images of samples with an id below ``most``; None for the others."""
    kept = (draws.sample_ids < most).tolist()
    flat = images.detach().flatten(1).float().cpu()
    return [row.tolist() if keep else None for row, keep in zip(flat, kept, strict=True)]


def schema() -> pyarrow.Schema:
    """Columns of the table; images are flattened (channels, height, width)."""
    import pyarrow

    error, picture = pyarrow.float64(), pyarrow.list_(pyarrow.float32())
    return pyarrow.schema(
        [
            ("sample_id", pyarrow.int64()),
            ("sigma", pyarrow.float64()),
            ("reference_error", error),
            ("guided_error", error),
            ("model_error", error),
            ("wiener_error", error),
            ("guidance_norm", error),
            ("dims", pyarrow.int64()),
            ("noisy", picture),
            ("reference", picture),
            ("guidance", picture),
        ]
    )


def class_gradient(model: Classifier, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """grad_x log p(y | x), same shape as ``x``; ``sigma`` is passed to noise-conditional models only."""
    return log_prob_and_gradient(model, x, y, sigma)[1]


def log_prob_and_gradient(model: Classifier, x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """log p(y | x) (batch,) in nats, and ``class_gradient``, which is 0 if the logits have no gradient."""
    level = sigma if isinstance(model.noise, ConditionalNoise) else None
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        chosen = model.logits(x, level).log_softmax(1).gather(1, y[:, None])[:, 0]
        if not chosen.requires_grad:
            return chosen, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(chosen.sum(), x, allow_unused=True)
    return chosen.detach(), torch.zeros_like(x) if gradient is None else gradient


def within_levels(model: Classifier, sigma: float) -> bool:
    """Whether the model can be evaluated at a noise level; always if it is not noise-conditional."""
    return not isinstance(model.noise, ConditionalNoise) or sigma in model.noise


def denoise_in_batches(
    denoiser: Denoiser, x: Tensor, sigma: float, model: Classifier, y: Tensor | None = None
) -> Tensor:
    """Denoise at the batch size of ``model``, padded as by FixedBatch, since kernels depend on the size."""
    batch = model.batch if isinstance(model, FixedBatch) else max(1, len(x))
    missing = -len(x) % batch
    padded = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    labels = [None] * (len(padded) // batch)
    if y is not None:
        labels = torch.cat([y, y[-1:].expand(missing)]).split(batch)
    parts = zip(padded.split(batch), labels, strict=True)
    with torch.no_grad():
        return torch.cat([denoiser.denoise(part, sigma, label) for part, label in parts])[: len(x)]


def squared_norms(difference: Tensor) -> list[float]:
    """The squared L2 norm of each row of (batch, ...)."""
    # row by row in numpy, whose order of summation depends only on the length of the row
    rows = difference.detach().flatten(1).double().cpu().numpy()
    return [float((row * row).sum()) for row in rows]
