"""The readout of an adversarial perturbation in terms of class-conditional denoisers.

With y = x + sigma n, the direction from class c to class k is D(y, k) - D(y, c) for class-conditional
denoisers, and sigma^2 grad [log p(k | y) - log p(c | y)] for a model's gradients; for the true posterior the
two are equal. So the perturbation of a model that follows the class structure of the data lies in the span
of the reference's differences; its share in that span is compared with that in a random span of the same
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.diffusion import DiffusionClassifier
from robustgen.classifiers.fixed_batch import unwrapped
from robustgen.classifiers.pipelines import PipelineClassifier
from robustgen.classifiers.score import ScoreClassifier
from robustgen.gradients.guidance import (
    class_gradient,
    denoise_in_batches,
    first_pictures,
    squared_norms,
    with_nulls,
    within_levels,
)
from robustgen.gradients.nearest import Nearest, nearest_wrong
from robustgen.perturb import Readout

if TYPE_CHECKING:
    import pyarrow

    from robustgen.draws import Draws

INTEGRATE_OVER_SIGMA = (DiffusionClassifier, PipelineClassifier, ScoreClassifier)
"""Classifiers whose margin integrates over noise levels, so that it is not the slope of the gradient at one
level, and for which a search of the nearest adversarial image is too expensive."""
PICTURES = ("noisy", "reference", "perturbation", "right", "other", "own_right", "own_other")


class Explained(Readout):
    """The nearest adversarial image and its relation to denoisers, one row per (sample, sigma).

    ``sigmas``: noise levels in pixel units; ``reference``: a class-conditional denoiser; ``pictures``: images
    are stored for samples with an id below this; ``steps``: iterations of the search; ``numbers``: the
    reference's labels of the classes, if not 0, 1, ...
    """

    name = "explained"

    def __init__(
        self, sigmas: Sequence[float], reference: Denoiser, pictures: int,
        steps: int = 20, numbers: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.reference = reference
        self.pictures = pictures
        self.numbers = numbers
        self.steps = steps

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """x (batch, channels, height, width) in [0, 1], labels y (batch,). Columns: ``schema()``.

        ``other_label``: the class of the nearest adversarial image or, if none was searched
        (INTEGRATE_OVER_SIGMA) or found, the most likely wrong class. Images: ``right`` and ``other`` are
        sigma^2 grad log p of the label and of that class, ``own_right`` and ``own_other`` are D(y, class) -
        D(y) of the model's own denoiser. ``share`` and ``random_share`` are of the squared norm.
        ``agreement_dot``, ``gradient_square`` and ``difference_square`` compare sigma^2 grad log p(label | y)
        with D(y, label) - D(y) of the model's own denoiser, unless the two are equal by construction.
        """
        import pyarrow

        self.reference.to(x.device)
        found = None
        if not isinstance(unwrapped(model), INTEGRATE_OVER_SIGMA):
            found = nearest_wrong(model, x, y, self.steps)
        random = draws.normal(model.num_classes - 1, x[0].numel()).double()
        tables = [schema().empty_table()]
        for sigma in self.sigmas:
            noisy = x + sigma * draws.normal(*x.shape[1:]).to(x)
            columns = self._columns(sigma, model, x, y, noisy, found, random)
            columns |= {
                "sample_id": draws.sample_ids, "sigma": [sigma] * len(x), "dims": [x[0].numel()] * len(x)
            }  # fmt: skip
            pictures = {name: columns[name] for name in PICTURES if columns.get(name) is not None}
            columns |= {
                name: first_pictures(images, draws, self.pictures) for name, images in pictures.items()
            }
            tables.append(with_nulls(columns, schema(), len(x)))
        return pyarrow.concat_tables(tables)

    def _columns(
        self, sigma: float, model: Classifier, x: Tensor, y: Tensor, noisy: Tensor, found: Nearest | None,
        random: Tensor,
    ) -> dict[str, Any]:  # fmt: skip
        other = _other_label(model, x, y, found)
        reference = denoise_in_batches(self.reference, noisy, sigma, model)
        columns: dict[str, Any] = {"other_label": other.tolist(), "noisy": noisy, "reference": reference}
        if found is not None:
            delta = (found.picture - x).flatten(1).double().cpu()
            differences = self._differences(model, noisy, sigma, y).double().cpu()
            columns |= {
                "margin": found.margin.tolist(),
                "first_order": found.first_order.tolist(),
                "distance": found.distance.tolist(),
                "share": share_in_span(delta, differences).tolist(),
                "random_share": share_in_span(delta, random).tolist(),
                "perturbation": found.picture - x,
            }
        if within_levels(model, sigma):
            columns["right"] = sigma**2 * class_gradient(model, noisy, y, sigma)
            columns["other"] = sigma**2 * class_gradient(model, noisy, other, sigma)
            columns |= self._agreement(sigma, model, noisy, y, other, columns["right"])
        return columns

    def _differences(self, model: Classifier, noisy: Tensor, sigma: float, y: Tensor) -> Tensor:
        """D_ref(y, k) - D_ref(y, c) for the classes k other than the label c: (batch, others, pixels)."""
        each = torch.stack(
            [
                denoise_in_batches(self.reference, noisy, sigma, model, torch.full_like(y, k)).flatten(1)
                for k in self.numbers or range(model.num_classes)
            ],
            1,
        )
        differences = each - each.gather(1, y[:, None, None].expand(-1, 1, each.shape[2]))
        wrong = torch.ones_like(each[:, :, 0], dtype=torch.bool).scatter_(1, y[:, None], False)
        return differences[wrong].view(len(y), -1, each.shape[2])

    def _agreement(
        self, sigma: float, model: Classifier, noisy: Tensor, y: Tensor, other: Tensor, right: Tensor
    ) -> dict[str, Any]:
        own = own_denoiser(model)
        if own is None:
            return {}
        mean, right_mean, other_mean = (
            denoise_in_batches(own, noisy, sigma, model, k) for k in (None, y, other)
        )
        pictures = {"own_right": right_mean - mean, "own_other": other_mean - mean}
        if denoiser_follows_from_logits(model):
            return pictures
        difference = pictures["own_right"]
        dot = (right.double() * difference.double()).flatten(1).sum(1)
        return pictures | {
            "agreement_dot": dot.tolist(),
            "gradient_square": squared_norms(right),
            "difference_square": squared_norms(difference),
        }


def schema() -> pyarrow.Schema:
    """Columns of the table; images are flattened (channels, height, width), distances are in L2."""
    import pyarrow

    number, picture = pyarrow.float64(), pyarrow.list_(pyarrow.float32())
    numbers = (
        "margin", "first_order", "distance", "share", "random_share",
        "agreement_dot", "gradient_square", "difference_square",
    )  # fmt: skip
    return pyarrow.schema(
        [("sample_id", pyarrow.int64()), ("sigma", number), ("dims", pyarrow.int64())]
        + [("other_label", pyarrow.int64())]
        + [(name, number) for name in numbers]
        + [(name, picture) for name in PICTURES]
    )


def share_in_span(vectors: Tensor, span: Tensor) -> Tensor:
    """The share of the squared norm of ``vectors`` (batch, pixels) in the span of the rows of ``span``
    (batch, rows, pixels), (batch,); NaN for a zero vector. All float64."""
    _, singular_values, basis = torch.linalg.svd(span, full_matrices=False)
    coordinates = (basis @ vectors[:, :, None])[:, :, 0].square()
    coordinates = coordinates * (singular_values > 1e-9 * singular_values[:, :1])
    return coordinates.sum(1) / vectors.square().sum(1)


def own_denoiser(model: Classifier) -> Denoiser | None:
    """The class-conditional denoiser of a model, or the one that it is built on; None if there is none."""
    inner = unwrapped(model)
    if isinstance(inner, DiffusionClassifier):
        return inner.denoiser
    return _OwnDenoiser(model) if "denoise" in model.supports else None


def denoiser_follows_from_logits(model: Classifier) -> bool:
    """Whether the denoiser is, by Tweedie's formula, the gradient of the joint density that the logits are
    the softmax of: the two then agree for any weights, and comparing them measures nothing."""
    inner = unwrapped(model)
    return not isinstance(inner, DiffusionClassifier) and type(inner).denoise is Classifier.denoise


class _OwnDenoiser(Denoiser):
    """The denoiser of a classifier, as a Denoiser."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        return self.model.denoise(x, sigma, y)


def _other_label(model: Classifier, x: Tensor, y: Tensor, found: Nearest | None) -> Tensor:
    """The class of the nearest adversarial image or, without one, the most likely wrong class, (batch,)."""
    with torch.no_grad():
        likeliest = model.logits(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    return likeliest if found is None else torch.where(found.distance > 0, found.label, likeliest)
