"""Scores of a picture that are stored beside its logits: what tells own pictures from foreign ones.

Larger means more like the data ("in"), but for ``complexity``, which says nothing of a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import codec


class Score(ABC):
    """One score or several of a picture: ``score(model, images)`` gives them by name, each (batch,).

    What a model or a picture does not have is left out, for the whole batch.
    """

    @abstractmethod
    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        """The scores of pictures (batch, channels, height, width), float64."""


class GradientNorm(Score):
    """``gradient``: -|grad_x log p(x)| in nats a unit of a pixel, L2 (JEM's approximate mass, Grathwohl et
    al. 2020, arXiv:1912.03263): small gradients where the density is flat and the mass lies.

    For models with log p(x); an unnormalised one will do, as its gradient is the same.
    """

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        if "log_prob" not in model.supports:
            return {}
        x = images.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), x)
        return {"gradient": -gradient.double().flatten(1).norm(dim=1).cpu()}


class Complexity(Score):
    """``complexity``: the bits of the picture as a PNG (codec.png_bits). The model is not asked."""

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        return {"complexity": codec.png_bits(images)}


class Chroma(Score):
    """``chroma``: less the picture's fine chroma (codec.chroma_detail). The model is not asked: what this
    scalar tells, the file format tells. Grey pictures have none."""

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        return {"chroma": -codec.chroma_detail(images).cpu()} if images.shape[1] == 3 else {}


SCORES: dict[str, type[Score]] = {"gradient": GradientNorm, "complexity": Complexity, "chroma": Chroma}


def read_scores(
    scores: Iterable[Score], model: FixedBatch, images: Tensor
) -> list[list[tuple[str, float]]] | None:
    """All scores of each picture, as the column ``scores`` of the rows takes them; None for no scores."""
    found = {name: values.tolist() for score in scores for name, values in score(model, images).items()}
    if not found:
        return None
    return [list(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
