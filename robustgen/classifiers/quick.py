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
from robustgen.environment import native_bfloat16
from robustgen.errors import UserError

EXAMPLE = 8  # pictures, enough to see that a copy is like the model
TOLERANCE = 1e-3  # of the logits' spread; folding moves the logits of a ResNet-18 by about 1e-6


class Backward:
    """Whether the layers of a quick copy compute input gradients in bfloat16."""

    def __init__(self) -> None:
        self.low = False


def quick_copy(model: Classifier, example: Tensor) -> Classifier | None:
    """A copy of ``model`` (in evaluation mode, without gradients to weights) with quicker kernels.

    ``example``: pictures (batch, channels, height, width), on the first of which the copy must give the
    model's own logits and gradients. What a net does not bear is left out, batch-norm's folding first,
    then the layout; None where it cannot even be copied.
    """
    example = example[:EXAMPLE]
    for folded, layout in ((True, torch.channels_last), (False, torch.channels_last), (False, None)):
        try:
            quick = copy.deepcopy(model)
        except Exception:  # a generator, an open file: whatever a user's model holds
            return None
        quick = _fold(quick) if folded else quick
        if layout is not None:
            quick.to(memory_format=layout)
        quick = quick.eval().requires_grad_(False)
        # Asked twice: what fails once is no property of the net, and another copy has other last bits.
        if _like(model, quick, example) or _like(model, quick, example):
            return _switchable(quick, example)
    return None


def _switchable(quick: Classifier, example: Tensor) -> Classifier:
    """The copy with layers whose gradients may be taken in bfloat16, where it bears them."""
    switch = Backward()
    layers = [layer for layer in quick.modules() if type(layer) in SWITCHED]
    for layer in layers:
        layer.low = layer.weight.detach().bfloat16()  # type: ignore[operator]
        layer.switch = switch  # type: ignore[assignment]
        layer.__class__ = SWITCHED[type(layer)]
    # twice: what fails once, for want of memory perhaps, is no property of the model
    if not (_bears_low(quick, example) or _bears_low(quick, example)):
        for layer in layers:
            layer.__class__ = type(layer).__mro__[1]
    return quick


def _bears_low(quick: Classifier, example: Tensor) -> bool:
    """Whether gradients in bfloat16 can be taken: not where a layer serves for more than its forward."""
    try:
        with low_gradients(quick):
            _facts(quick, example[:1])  # one, for where bfloat16 is emulated
    except Exception:
        return False
    return True


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


def need_bfloat16(device: torch.device) -> None:
    """Raise UserError where a run in bfloat16 would take many times as long as one in float32."""
    if not native_bfloat16(device):
        raise UserError(
            "this machine has no bfloat16 of its own", where="precision bf16",
            expected="a processor or GPU with bfloat16",
            got="one that would emulate it, many times slower than float32",
            remedy="take float32, or auto, which takes bfloat16 only where it is faster",
        )  # fmt: skip


def _fold(model: Classifier) -> Classifier:
    """Fold batch-norm into convolutions, in every part of the model that torch.fx can follow."""
    from torch.fx.experimental.optimization import fuse

    for name, child in model.named_children():
        try:
            setattr(model, name, fuse(child, inplace=True))
        except Exception:  # whatever a user's forward makes the tracer raise: it stays as it is
            logging.getLogger(__name__).debug("cannot fold %s", name, exc_info=True)
    return model


def _like(model: Classifier, other: Classifier, example: Tensor) -> bool:
    """Whether the other's logits and their gradient are the model's, for one batch size and for another.

    The gradient too: a trace loses the backward pass that a model brings for a function of its own.
    """
    for part in (example, example[:1]):
        try:
            # a trace that lost a no_grad() has a gradient more
            for wanted, got in zip(_facts(model, part), _facts(other, part), strict=True):
                if not bool((got - wanted).abs().max() <= TOLERANCE * wanted.std().clamp_min(1e-6)):
                    return False
        except Exception:  # a trace that fits one batch size only, a view of another layout, and the like
            return False
    return True


def _facts(model: Classifier, x: Tensor) -> list[Tensor]:
    """Logits, and the gradient of a sum of them with unequal weights; of some models, logits alone."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(x)
        if not logits.requires_grad:
            return [logits]
        weights = torch.linspace(1, 2, logits.shape[1], device=x.device)
        return [logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]]


class _Conv2d(nn.Conv2d):
    """A convolution whose input gradient may be computed in bfloat16; made of another by its class alone."""

    switch: Backward
    low: Tensor

    def forward(self, input: Tensor) -> Tensor:
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if self.switch.low and plain and input.requires_grad and torch.is_grad_enabled():
            return _ConvolutionLow.apply(input, self, self.low)
        return super().forward(input)


class _Linear(nn.Linear):
    """A linear layer whose input gradient may be computed in bfloat16; made as ``_Conv2d`` is."""

    switch: Backward
    low: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.switch.low and input.requires_grad and torch.is_grad_enabled():
            return _LinearLow.apply(input, self, self.low)
        return super().forward(input)


SWITCHED: dict[type, Any] = {nn.Conv2d: _Conv2d, nn.Linear: _Linear}


class _ConvolutionLow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, low: Tensor) -> Tensor:
        ctx.layer, ctx.low, ctx.shape = layer, low, x.shape
        return nn.Conv2d.forward(layer, x)

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
