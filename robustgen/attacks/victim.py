"""The model as an attack queries it: logits, losses and their gradients, and a check of what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving
from robustgen.classifiers.quick import bfloat16_gradients
from robustgen.errors import UserError
from robustgen.types import VERDICT_DRAWS

Loss: TypeAlias = Callable[[Tensor], Tensor]

MAX_RIGHT_SHARE = 1 / 8
"""A sample of a stochastic model is attacked no further once at most this share of the model's draws is
right.

Its verdict is a share of draws as well, so an image that half of the draws get wrong is only half a success.
"""


class Answer(NamedTuple):
    """A victim's answer to a query: logits (batch, classes) and, where the query asked for them, the loss
    (batch,) and its gradient (batch, channels, height, width)."""

    logits: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Both, of an answer to a query that asked for them."""
        assert self.loss is not None
        assert self.gradient is not None
        return self.loss, self.gradient


class Prediction(NamedTuple):
    """What the model itself predicts, as for a verdict.

    ``logits`` (batch, classes): of a stochastic model, the log of the mean p(y | x) over its draws.
    ``classes`` (draws, batch): the predicted class by each draw.
    """

    logits: Tensor
    classes: Tensor


class Victim:
    """A classifier under attack.

    ``model`` gives the verdict. ``fast`` is what the search queries: the model's quick copy where there is
    one, whose hits the model confirms. ``bfloat16_gradients``: whether the backward pass is in bfloat16
    (None: as the model says); logits and losses always are float32.

    A subclass may change what losses are computed from: ``output`` is the differentiable output of one
    forward pass, ``loss_of`` gives the loss and ``logits_of`` the logits that belong to it.
    """

    def __init__(self, model: Classifier, *, bfloat16_gradients: bool | None = None) -> None:
        quick = model.quick if isinstance(model, FixedBatch) else None
        self.model = model
        self.fast: Classifier = model if quick is None else quick
        if bfloat16_gradients is None:
            bfloat16_gradients = isinstance(model, FixedBatch) and model.bfloat16_gradients
        self.bfloat16_gradients = bfloat16_gradients

    @torch.no_grad()
    def logits(self, x: Tensor) -> Answer:
        """The logits alone."""
        return Answer(self.fast.logits(x))

    def gradient(self, x: Tensor, loss: Loss) -> Answer:
        """The logits, loss(logits) of shape (batch,), and the gradient of its sum in x."""
        return next(self.gradients(x, [loss]))

    def gradients(self, x: Tensor, losses: Sequence[Loss]) -> Iterator[Answer]:
        """``gradient`` for several losses, one after another, from one forward pass.

        Raises UserError where the logits have no gradient.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad(), bfloat16_gradients(self.fast) if self.bfloat16_gradients else nullcontext():
            output = self.output(x)
        if not output.requires_grad:
            raise UserError(
                "the model's logits do not depend differentiably on its input",
                expected="a gradient, which this attack climbs",
                got="logits without one",
                remedy="no detach(), no_grad(), numpy or rounding in the model ('robustgen check MODEL')",
            )
        for place, loss in enumerate(losses):
            if place and isinstance(self.fast, FixedBatch):
                self.fast.count_backward(len(output))
            more = place + 1 < len(losses)
            with torch.enable_grad():
                values = self.loss_of(output, loss)
                gradient = torch.autograd.grad(values.sum(), x, retain_graph=more)[0]
            yield Answer(self.logits_of(output.detach()), values.detach(), without_nan(gradient))

    def output(self, x: Tensor) -> Tensor:
        """What losses are computed from, differentiable in x: here the logits."""
        return self.fast.logits(x)

    def loss_of(self, output: Tensor, loss: Loss) -> Tensor:
        """The loss, (batch,)."""
        return loss(output)

    def logits_of(self, output: Tensor) -> Tensor:
        """The logits, (batch, classes)."""
        return output

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the model misclassifies x, (batch,): asked again as for a verdict, that is the model itself
        and not its copy, and without gradients."""
        return self.model.logits(x).argmax(1) != y

    def serving(self, rows: Tensor) -> AbstractContextManager[None]:
        """Within the block, calls are counted for these rows of the batch."""
        return serving(self.model, rows)


VictimFactory: TypeAlias = Callable[[Classifier], Victim]


class EOT(Victim):
    """A stochastic model, by the mean over ``m`` draws: expectation over transformation (Athalye et al. 2018,
    arXiv:1802.00420).

    Loss and gradient are means over the draws. The logits are the log of the mean p(y | x), not the mean of
    log p: there, a few draws that are off by many nats would outweigh all others. A hit is confirmed by ``m``
    fresh draws, of which at most MAX_RIGHT_SHARE may be right.
    """

    def __init__(self, model: Classifier, m: int = 16) -> None:
        super().__init__(model)
        self.m = m

    @torch.no_grad()
    def logits(self, x: Tensor) -> Answer:
        return Answer(self.logits_of(self.output(x)))

    def output(self, x: Tensor) -> Tensor:
        return self.fast.logits(repeated(x, self.m))

    def loss_of(self, output: Tensor, loss: Loss) -> Tensor:
        return mean_loss(output, loss, self.m)

    def logits_of(self, output: Tensor) -> Tensor:
        return _log_mean_softmax(output, self.m)

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        classes = self.output(x).argmax(1).view(self.m, -1)
        return right_share(classes, y) <= MAX_RIGHT_SHARE


def default_victim(model: Classifier) -> Victim:
    """EOT for a stochastic model, the plain Victim for others."""
    return EOT(model) if model.stochastic else Victim(model)


@torch.no_grad()
def predict(model: Classifier, x: Tensor) -> Prediction:
    """What the model itself (not its quick copy) predicts for x; a stochastic one by VERDICT_DRAWS draws."""
    m = VERDICT_DRAWS if model.stochastic else 1
    logits = model.logits(repeated(x, m))
    classes = logits.argmax(1).view(m, -1)
    return Prediction(_log_mean_softmax(logits, m) if model.stochastic else logits, classes)


def right_share(classes: Tensor, y: Tensor) -> Tensor:
    """The share of the draws (draws, batch) that predict y, (batch,)."""
    return (classes == y).float().mean(0)


def without_nan(gradient: Tensor) -> Tensor:
    """The gradient with NaN and infinite entries set to 0.

    Single entries may be NaN where the logits are fine, such as that of a square root at a pixel of 0, and
    would spoil every direction of steepest ascent.
    """
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def repeated(x: Tensor, m: int) -> Tensor:
    """The whole batch ``m`` times, one copy after another."""
    return x.expand(m, *x.shape).reshape(-1, *x.shape[1:])


def mean_loss(logits: Tensor, loss: Loss, m: int) -> Tensor:
    """The mean of the loss over ``m`` copies of a batch, (batch,)."""
    return torch.stack([loss(part) for part in logits.chunk(m)]).mean(0)


def _log_mean_softmax(logits: Tensor, m: int) -> Tensor:
    return logits.log_softmax(1).view(m, -1, logits.shape[1]).logsumexp(0) - math.log(m)
