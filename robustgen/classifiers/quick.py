"""A quick copy of a classifier: the same function with faster kernels, for attacks to search with.

Batch-norm is folded into the convolution before it, and pictures are laid out channels last. Its
gradients may be computed in bfloat16; its values never are: a search compares losses that differ by
less than bfloat16 can tell.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from robustgen.classifiers.base import Classifier

TOLERANCE = 1e-3  # of the logits' spread; folding moves the logits of a ResNet-18 by about 1e-6


class Backward:
    """Whether the layers of a quick copy compute input gradients in bfloat16."""

    def __init__(self) -> None:
        self.low = False


def quick_copy(model: Classifier, example: Tensor) -> Classifier:
    """A copy of ``model`` (in evaluation mode, without gradients to weights) with quicker kernels.

    ``example``: a few pictures (batch, channels, height, width), on which the copy must give the
    model's own logits; a net that cannot be rewritten is copied as it is.
    """
    folded = _like(model, _fold(copy.deepcopy(model)), example)
    quick = folded if folded is not None else copy.deepcopy(model)
    quick.to(memory_format=torch.channels_last)
    switch = Backward()
    for module in list(quick.modules()):
        for name, layer in module.named_children():
            if type(layer) in SWITCHED:
                setattr(module, name, SWITCHED[type(layer)](layer, switch))
    return quick.eval().requires_grad_(False)


@contextmanager
def low_gradients(quick: Classifier) -> Iterator[None]:
    """Within the block, the gradients of a quick copy are computed in bfloat16; nothing else changes."""
    switches = {id(m.switch): m.switch for m in quick.modules() if isinstance(m, _Conv2d | _Linear)}
    for switch in switches.values():
        switch.low = True
    try:
        yield
    finally:
        for switch in switches.values():
            switch.low = False


def _fold(model: Classifier) -> Classifier:
    """Fold batch-norm into convolutions, in every part of the model that torch.fx can follow."""
    from torch.fx.experimental.optimization import fuse

    for name, child in model.named_children():
        try:
            setattr(model, name, fuse(child, inplace=True))
        except Exception:  # whatever a user's forward makes the tracer raise: it stays as it is
            logging.getLogger(__name__).debug("cannot fold %s", name, exc_info=True)
    return model


def _like(model: Classifier, other: Classifier, example: Tensor) -> Classifier | None:
    """``other``, if its logits and their gradient are the model's, for one batch size and for another.

    The gradient too: a trace loses the backward pass that a model brings for a function of its own.
    """
    try:
        for part in (example, example[:1]):
            for wanted, got in zip(_facts(model, part), _facts(other, part), strict=True):
                if not bool((got - wanted).abs().max() <= TOLERANCE * wanted.std().clamp_min(1e-6)):
                    return None
    except Exception:  # a trace that fits one batch size only, and the like
        return None
    return other


def _facts(model: Classifier, x: Tensor) -> list[Tensor]:
    """Logits, and the gradient of a sum of them with unequal weights; of some models, logits alone."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(x)
        if not logits.requires_grad:
            return [logits]
        weights = torch.linspace(1, 2, logits.shape[1], device=x.device)
        return [logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]]


class _Conv2d(nn.Module):
    """A convolution whose input gradient may be computed in bfloat16."""

    def __init__(self, layer: nn.Conv2d, switch: Backward) -> None:
        super().__init__()
        self.layer = layer
        self.switch = switch
        self.low = layer.weight.detach().bfloat16()
        self.zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.low and self.zeros and x.requires_grad and torch.is_grad_enabled():
            return _ConvolutionLow.apply(x, self.layer, self.low)
        return self.layer(x)


class _Linear(nn.Module):
    """A linear layer whose input gradient may be computed in bfloat16."""

    def __init__(self, layer: nn.Linear, switch: Backward) -> None:
        super().__init__()
        self.layer = layer
        self.switch = switch
        self.low = layer.weight.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.low and x.requires_grad and torch.is_grad_enabled():
            return _LinearLow.apply(x, self.layer, self.low)
        return self.layer(x)


SWITCHED: dict[type, Any] = {nn.Conv2d: _Conv2d, nn.Linear: _Linear}


class _ConvolutionLow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, low: Tensor) -> Tensor:
        ctx.layer, ctx.low, ctx.shape = layer, low, x.shape
        return layer(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        layer: nn.Conv2d = ctx.layer
        # The gradient in the input needs the input's shape alone; ``expand`` makes one for nothing.
        like = ctx.low.new_empty(1).expand(ctx.shape)
        got = torch.ops.aten.convolution_backward(
            grad.bfloat16(), like, ctx.low, None, layer.stride, layer.padding, layer.dilation, False, [0, 0],
            layer.groups, [True, False, False],
        )  # fmt: skip
        return got[0].float(), None, None


class _LinearLow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, low: Tensor) -> Tensor:
        ctx.low = low
        return functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.bfloat16() @ ctx.low).float(), None, None
