"""The model as an attack sees it: something to search with, and something to be right about."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, serving


class Answer(NamedTuple):
    """What a model said of some points: logits (batch, classes), and where it was asked for them
    the loss (batch,) and its gradient (batch, channels, height, width)."""

    logits: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None


class Victim:
    """A classifier under attack.

    ``model`` gives the verdict; ``fast``, where there is one, is a copy of it with quicker kernels,
    and the search asks only that one. What the copy takes for broken is confirmed by the model.
    """

    def __init__(self, model: Classifier, fast: Classifier | None = None) -> None:
        self.model = model
        self.fast = model if fast is None else fast

    @classmethod
    def of(cls, model: Classifier) -> Victim:
        """The view of a model that most attacks have: exact gradients, its own quick copy if it has one."""
        return cls(model)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Answer:
        """Logits alone."""
        return Answer(self.fast.logits(x))

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Answer:
        """Logits, loss(logits) of shape (batch,), and the gradient of its sum in x."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.fast.logits(x)
            values = loss(logits)
            gradient = torch.autograd.grad(values.sum(), x)[0]
        return Answer(logits.detach(), values.detach(), gradient)

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the model itself takes x for something else than y, shape (batch,)."""
        return self.model.logits(x).argmax(1) != y

    def serving(self, rows: Tensor) -> AbstractContextManager[None]:
        """Calls within the block are for these rows of the batch."""
        return serving(self.model, rows)
