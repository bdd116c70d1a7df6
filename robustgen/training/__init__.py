"""Training: one loop for every objective, one file an objective.

An objective is a class named in OBJECTIVES: ``Objective(spec, data)`` with
``loss(model, x, y, generator)``; see ``Objective`` for the contract.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from robustgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from robustgen.data import Dataset

# By ``kind`` of the recipe's objective; its fields are in recipe.py.
OBJECTIVES: dict[str, str] = {
    "cross-entropy": "robustgen.training.cross_entropy:CrossEntropy",
    "adversarial": "robustgen.training.adversarial:Adversarial",
    "n-fgsm": "robustgen.training.adversarial:FastAdversarial",
    "sgld": "robustgen.training.sgld:Sgld",
    "gmmc": "robustgen.training.centres:Gmmc",
    "denoising": "robustgen.training.denoising:Denoising",
}


class Diverged(UserError):
    """The loss is no number any more, or far from anything useful."""


class Objective:
    """What a training minimises.

    ``progress`` in [0, 1) is set by the loop before each step, for what changes along the training.
    """

    progress: float = 0.0

    def __init__(self, spec: Any, data: Dataset) -> None:
        self.spec = spec
        self.data = data

    def loss(
        self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, a scalar with a graph, and its parts for the curve.

        ``model`` is in training mode; ``x`` (batch, channels, height, width) in [0, 1]; ``y`` (batch,).
        Every random draw comes from ``generator``, which is seeded by the step: so a training
        that is resumed makes the draws of one that was never interrupted. May raise Diverged.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What outlives a step, such as a replay buffer; it is part of the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""


def make_objective(spec: Any, data: Dataset) -> Objective:
    """The objective of a recipe."""
    module, _, name = OBJECTIVES[spec.kind].partition(":")
    return getattr(importlib.import_module(module), name)(spec, data)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of right predictions, for the curve."""
    return float((logits.detach().argmax(1) == y).float().mean())


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Within this block the model is in evaluation mode and only pictures need a gradient.

    An attack or a sampler so pays for the gradient of its pictures alone.
    """
    training = model.training
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
        model.train(training)
