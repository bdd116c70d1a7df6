"""The readout of class gradients: what grad log p(label | noisy picture) is worth, sigma by sigma.

With y = x + sigma n and one separately trained reference denoiser D_ref, Tweedie's formula and Bayes'
rule say that E[x | y, label] = E[x | y] + sigma^2 grad log p(label | y). So a classifier's gradient
is worth as much as it lowers the error of the reference:

    guidance gain G = E|x - D_ref(y)|^2 - E|x - D_ref(y) - sigma^2 grad log p(label | y)|^2,

which only the true posterior's gradient maximises where D_ref is the posterior mean. The table holds
the two errors of each sample; the gain and its interval are metrics over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    """Reads out guidance and denoising errors, one row a (sample, sigma).

    ``sigmas``: noise levels in pixel units; ``reference``: the denoiser that the gradients guide;
    ``wiener``: the bar that a denoiser must pass; ``pictures``: samples of a smaller id than this
    also get their pictures stored, at the middle noise level: a page shows no other, and on colour
    pictures they are nearly all that rows weigh.
    """

    name = "guidance"

    def __init__(self, sigmas: Sequence[float], reference: Denoiser, wiener: Denoiser, pictures: int) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.reference = reference
        self.wiener = wiener
        self.pictures = pictures
        self.shown = sorted(self.sigmas)[len(self.sigmas) // 2] if self.sigmas else None

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """Errors are squared distances |x - estimate|^2, summed over the ``dims`` pixels.

        ``x`` (batch, channels, height, width) in [0, 1]; ``y`` labels (batch,). The noise comes
        from ``draws``, anew at each sigma, and noisy pictures are not clipped: that would no longer
        be Gaussian noise. Columns: ``schema()``.
        """
        import pyarrow

        for denoiser in (self.reference, self.wiener):
            denoiser.to(x.device)
        tables = [self._at(sigma, model, x, y, draws) for sigma in self.sigmas]
        return pyarrow.concat_tables(tables) if tables else schema().empty_table()

    def _at(self, sigma: float, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        import pyarrow

        noisy = x + sigma * draws.normal(*x.shape[1:]).to(x)
        reference = denoise_in_batches(self.reference, noisy, sigma, model)
        modelled = isinstance(model.noise, ConditionalNoise) and sigma in model.noise
        guidance = own = None
        if within_levels(model, sigma):
            guidance = sigma**2 * class_gradient(model, noisy, y, sigma)
        if modelled and "denoise" in model.supports:
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
        if sigma == self.shown:
            shown = {"noisy": noisy, "reference": reference}
            shown |= {} if guidance is None else {"guidance": guidance}
            columns |= {name: first_pictures(found, draws, self.pictures) for name, found in shown.items()}
        nothing = [None] * len(x)
        filled = {name: nothing if columns.get(name) is None else columns[name] for name in schema().names}
        return pyarrow.table(filled, schema=schema())


def first_pictures(pictures: Tensor, draws: Draws, most: int) -> list[list[float] | None]:
    """Pictures, flattened, of the samples whose ids are below ``most``, and None of the others."""
    kept = (draws.sample_ids < most).tolist()
    flat = pictures.detach().flatten(1).float().cpu()
    return [row.tolist() if keep else None for row, keep in zip(flat, kept, strict=True)]


def schema() -> pyarrow.Schema:
    """Columns of the readout's table; pictures are flattened (channels, height, width)."""
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
    """grad_x log p(y | x), x's shape, at the model's noise level ``sigma`` where it has levels.

    A model that is not conditional on noise is asked for the noisy picture as for any other.
    """
    return log_prob_and_gradient(model, x, y, sigma)[1]


def log_prob_and_gradient(model: Classifier, x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """log p(y | x) (batch,) in nats, and ``class_gradient``.

    Where nothing leads from the logits back to the pixels, the gradient is 0.
    """
    level = sigma if isinstance(model.noise, ConditionalNoise) else None
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        chosen = model.logits(x, level).log_softmax(1).gather(1, y[:, None])[:, 0]
        if not chosen.requires_grad:
            return chosen, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(chosen.sum(), x, allow_unused=True)
    return chosen.detach(), torch.zeros_like(x) if gradient is None else gradient


def within_levels(model: Classifier, sigma: float) -> bool:
    """Whether the model can be asked at a noise level: any, if it is not conditional on noise."""
    return not isinstance(model.noise, ConditionalNoise) or sigma in model.noise


def denoise_in_batches(
    denoiser: Denoiser, x: Tensor, sigma: float, model: Classifier, y: Tensor | None = None
) -> Tensor:
    """The denoiser at one batch size only, as FixedBatch calls ``model``: kernels differ by size."""
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
    """The squared length of each row of (batch, ...)."""
    # one row at a time in numpy, whose order of summation depends on the row's length alone
    rows = difference.detach().flatten(1).double().cpu().numpy()
    return [float((row * row).sum()) for row in rows]
