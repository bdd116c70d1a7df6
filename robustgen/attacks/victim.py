"""The model as an attack sees it: something to search with, and something to be right about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving
from robustgen.classifiers.quick import bfloat16_gradients
from robustgen.errors import UserError

Loss: TypeAlias = Callable[[Tensor], Tensor]


class Answer(NamedTuple):
    """What a model said of some points: logits (batch, classes), and where it was asked for them
    the loss (batch,) and its gradient (batch, channels, height, width)."""

    logits: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def ascent(self) -> tuple[Tensor, Tensor]:
        """The loss and its gradient, of an answer that was asked for them."""
        assert self.loss is not None
        assert self.gradient is not None
        return self.loss, self.gradient


class Said(NamedTuple):
    """What a model itself says of pictures, as for a verdict: ``logits`` (batch, classes), of a stochastic
    one the log of the mean p(y | x) over its draws; ``predicted`` (draws, batch), the class by each draw."""

    logits: Tensor
    predicted: Tensor


SETTLED = 1 / 8
"""A stochastic model's sample needs no other attack once no more than this share of its draws is right: its
verdict is a share of draws too, so what half of them take for something else is half a success."""


class Victim:
    """A classifier under attack.

    ``model`` gives the verdict; ``fast``, its quick copy where it has one, is what the search asks.
    What the copy takes for broken is confirmed by the model. ``low``: whether gradients are taken in
    bfloat16; logits and losses are in float32 always.
    """

    def __init__(self, model: Classifier, *, low: bool | None = None) -> None:
        quick = model.quick if isinstance(model, FixedBatch) else None
        self.model = model
        self.fast: Classifier = model if quick is None else quick
        self.low = (isinstance(model, FixedBatch) and model.bfloat16_gradients) if low is None else low

    @torch.no_grad()
    def logits(self, x: Tensor) -> Answer:
        """Logits alone."""
        return Answer(self.fast.logits(x))

    def gradient(self, x: Tensor, loss: Loss) -> Answer:
        """Logits, loss(logits) of shape (batch,), and the gradient of its sum in x."""
        return next(self.gradients(x, [loss]))

    def gradients(self, x: Tensor, losses: Sequence[Loss]) -> Iterator[Answer]:
        """``gradient`` of several losses, one after another, from one forward pass.

        Raises UserError where the logits have no gradient.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad(), bfloat16_gradients(self.fast) if self.low else nullcontext():
            seen = self.see(x)
        if not seen.requires_grad:
            raise UserError(
                "nothing leads from the model's logits back to the pixels",
                expected="a gradient, which this attack climbs",
                got="logits without one",
                remedy="no detach(), no_grad(), numpy or rounding in the model ('robustgen check MODEL')",
            )
        for place, loss in enumerate(losses):
            if place and isinstance(self.fast, FixedBatch):
                self.fast.count_backward(len(seen))
            more = place + 1 < len(losses)
            with torch.enable_grad():
                values = self.value(seen, loss)
                gradient = torch.autograd.grad(values.sum(), x, retain_graph=more)[0]
            yield Answer(self.say(seen.detach()), values.detach(), finite(gradient))

    def see(self, x: Tensor) -> Tensor:
        """What losses are of, differentiable: the logits at x."""
        return self.fast.logits(x)

    def value(self, seen: Tensor, loss: Loss) -> Tensor:
        """The loss of what was seen, (batch,)."""
        return loss(seen)

    def say(self, seen: Tensor) -> Tensor:
        """The logits that verdicts are by."""
        return seen

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the model takes x for something else than y, shape (batch,), when it is asked again: itself
        and not its copy, and without gradients, as for a verdict."""
        return self.model.logits(x).argmax(1) != y

    def serving(self, rows: Tensor) -> AbstractContextManager[None]:
        """Calls within the block are for these rows of the batch."""
        return serving(self.model, rows)


def finite(gradient: Tensor) -> Tensor:
    """A gradient without the entries that are no numbers, which would make none of a whole direction: a root
    of a pixel that is 0 has one, where the logits are as good as any."""
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def right_share(predicted: Tensor, y: Tensor) -> Tensor:
    """The share of draws (draws, batch) that are right, (batch,)."""
    return (predicted == y).float().mean(0)


MakeVictim: TypeAlias = Callable[[Classifier], Victim]
"""How an attack sees a model."""
