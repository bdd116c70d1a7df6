"""Training: one loop (loop.py) for all objectives, one file per objective.

A new objective is a subclass of ``Objective`` that is named in OBJECTIVES.
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

OBJECTIVES: dict[str, str] = {
    "cross-entropy": "robustgen.training.cross_entropy:CrossEntropy",
    "adversarial": "robustgen.training.adversarial:Adversarial",
    "n-fgsm": "robustgen.training.adversarial:FastAdversarial",
    "sgld": "robustgen.training.sgld:Sgld",
    "gmmc": "robustgen.training.centres:Gmmc",
    "denoising": "robustgen.training.denoising:Denoising",
}
"""``objective.kind`` of a recipe to module:class; the fields of each are in recipe.py."""


class Diverged(UserError):
    """The loss or the weights are no longer finite, or the loss is beyond recovery."""


class Objective:
    """A training objective.

    ``spec``: the recipe's ``objective``; ``data``: the training split; ``progress``: the completed share of
    the training, in [0, 1), which the loop sets before each step, for schedules.
    """

    progress: float = 0.0

    def __init__(self, spec: Any, data: Dataset) -> None:
        self.spec = spec
        self.data = data

    def loss(
        self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, a differentiable scalar, and named values for the loss curve.

        ``model`` is in training mode; ``x`` (batch, channels, height, width) in [0, 1]; ``y`` (batch,).
        All random draws come from ``generator``, which is seeded per step, so that a resumed training
        makes the same draws as an uninterrupted one. May raise Diverged.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """State that persists between steps, such as a replay buffer, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""


def make_objective(spec: Any, data: Dataset) -> Objective:
    """The objective of a recipe."""
    module, _, name = OBJECTIVES[spec.kind].partition(":")
    return getattr(importlib.import_module(module), name)(spec, data)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of correct predictions, for the loss curve."""
    return float((logits.detach().argmax(1) == y).float().mean())


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode and its weights take no gradient.

    Attacks and samplers need the gradient of their images only.
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
