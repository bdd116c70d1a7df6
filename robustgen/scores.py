"""OOD scores of an image that cannot be computed from its logits, and so are stored beside them.

Larger means in-distribution, except for ``complexity``, which does not depend on the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import codec


class Score(ABC):
    """One or several scores: ``score(model, images)`` returns them by name, each (batch,).

    A score that does not apply to the model or to the images is left out for the whole batch.
    """

    @abstractmethod
    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        """The scores of images (batch, channels, height, width), float64."""


class GradientNorm(Score):
    """``gradient``: -|grad_x log p(x)|_2 in nats per pixel unit, JEM's approximate mass (Grathwohl et al.
    2020, arXiv:1912.03263): the gradient is small in a typical, flat region of the density.

    For models with log p(x), which may be unnormalised, as the gradient is the same.
    """

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        if "log_prob" not in model.supports:
            return {}
        x = images.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), x)
        return {"gradient": -gradient.double().flatten(1).norm(dim=1).cpu()}


class Complexity(Score):
    """``complexity``: the size of the image as a PNG, in bits (codec.png_bits). Does not use the model."""

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        return {"complexity": codec.png_bits(images)}


class Chroma(Score):
    """``chroma``: minus codec.chroma_detail, for colour images. Does not use the model: what this score
    detects is the file format."""

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        return {"chroma": -codec.chroma_detail(images).cpu()} if images.shape[1] == 3 else {}


SCORES: dict[str, type[Score]] = {"gradient": GradientNorm, "complexity": Complexity, "chroma": Chroma}


def read_scores(
    scores: Iterable[Score], model: FixedBatch, images: Tensor
) -> list[list[tuple[str, float]]] | None:
    """All scores as (name, value) pairs per image, for the rows' column ``scores``; None without scores."""
    found = {name: values.tolist() for score in scores for name, values in score(model, images).items()}
    if not found:
        return None
    return [list(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
