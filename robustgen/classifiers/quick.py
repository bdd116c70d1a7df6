"""A quick copy of a classifier: the same function with faster kernels, for the searches of attacks.

Batch norm is folded into the preceding convolution and the memory layout is channels last. Input gradients
may be computed in bfloat16; logits never are, since a search compares losses that differ by less than
bfloat16 resolves.
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

EXAMPLE = 8  # images on which a copy is compared with the model
TOLERANCE = 1e-3  # in standard deviations of the logits; folding changes a ResNet-18's by about 1e-6


class BackwardPrecision:
    """Whether the layers of a quick copy, which share this object, compute input gradients in bfloat16."""

    def __init__(self) -> None:
        self.bfloat16 = False


def quick_copy(model: Classifier, example: Tensor) -> Classifier | None:
    """A copy of ``model``, which is in evaluation mode and without weight gradients, with faster kernels.

    ``example``: images (batch, channels, height, width); on the first ones the copy must reproduce the
    model's logits and input gradients. An optimisation that breaks the network is left out, folding
    first, then the layout. None if the model cannot be copied.
    """
    example = example[:EXAMPLE]
    for folded, layout in ((True, torch.channels_last), (False, torch.channels_last), (False, None)):
        try:
            quick = copy.deepcopy(model)
        except Exception:  # a generator, an open file: whatever a user's model holds
            return None
        quick = _fold_batch_norm(quick) if folded else quick
        if layout is not None:
            quick.to(memory_format=layout)
        quick = quick.eval().requires_grad_(False)
        # A second attempt: a chance failure must not select another copy, whose last bits differ.
        if _agrees(model, quick, example) or _agrees(model, quick, example):
            return _with_bfloat16_layers(quick, example)
    return None


def _with_bfloat16_layers(quick: Classifier, example: Tensor) -> Classifier:
    """The copy with layers that can compute input gradients in bfloat16, if the network allows it."""
    precision = BackwardPrecision()
    layers = [layer for layer in quick.modules() if type(layer) in BFLOAT16_LAYERS]
    for layer in layers:
        layer.bfloat16_weight = layer.weight.detach().bfloat16()  # type: ignore[operator]
        layer.backward_precision = precision  # type: ignore[assignment]
        layer.__class__ = BFLOAT16_LAYERS[type(layer)]
    # A second attempt: a chance failure, such as a lack of memory, is not a property of the model.
    if not (_bfloat16_works(quick, example) or _bfloat16_works(quick, example)):
        for layer in layers:
            layer.__class__ = type(layer).__mro__[1]
    return quick


def _bfloat16_works(quick: Classifier, example: Tensor) -> bool:
    """Whether bfloat16 gradients can be computed: not if a layer is used other than by its forward."""
    try:
        with bfloat16_gradients(quick):
            _logits_and_gradient(quick, example[:1])  # one image, in case bfloat16 is emulated
    except Exception:
        return False
    return True


@contextmanager
def bfloat16_gradients(quick: Classifier) -> Iterator[None]:
    """Within the block, the input gradients of a quick copy are computed in bfloat16."""
    layers = [layer for layer in quick.modules() if isinstance(layer, _Conv2d | _Linear)]
    precisions = {id(layer.backward_precision): layer.backward_precision for layer in layers}
    for precision in precisions.values():
        precision.bfloat16 = True
    try:
        yield
    finally:
        for precision in precisions.values():
            precision.bfloat16 = False


def need_bfloat16(device: torch.device) -> None:
    """Raise UserError if the device only emulates bfloat16, at many times the cost of float32."""
    if not native_bfloat16(device):
        raise UserError(
            "this machine does not compute in bfloat16 natively", where="precision bf16",
            expected="a processor or GPU with bfloat16",
            got="one that would emulate it, many times slower than float32",
            remedy="take float32, or auto, which takes bfloat16 only where it is faster",
        )  # fmt: skip


def _fold_batch_norm(model: Classifier) -> Classifier:
    """Fold batch norm into convolutions, in every submodule that torch.fx can trace."""
    from torch.fx.experimental.optimization import fuse

    for name, child in model.named_children():
        try:
            setattr(model, name, fuse(child, inplace=True))
        except Exception:  # whatever a user's forward makes the tracer raise: it stays as it is
            logging.getLogger(__name__).debug("cannot fold %s", name, exc_info=True)
    return model


def _agrees(model: Classifier, other: Classifier, example: Tensor) -> bool:
    """Whether ``other`` reproduces the model's logits and input gradient, at two batch sizes.

    The gradient is compared too, since a trace loses a custom backward pass.
    """
    for part in (example, example[:1]):
        try:
            # strict: a trace that lost a no_grad() has a gradient that the model does not have
            pairs = zip(_logits_and_gradient(model, part), _logits_and_gradient(other, part), strict=True)
            for wanted, got in pairs:
                if not bool((got - wanted).abs().max() <= TOLERANCE * wanted.std().clamp_min(1e-6)):
                    return False
        except Exception:  # a trace of one batch size only, a view that needs another layout, and the like
            return False
    return True


def _logits_and_gradient(model: Classifier, x: Tensor) -> list[Tensor]:
    """The logits and the input gradient of their weighted sum; the logits alone if they have no gradient."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(x)
        if not logits.requires_grad:
            return [logits]
        weights = torch.linspace(1, 2, logits.shape[1], device=x.device)
        return [logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]]


class _Conv2d(nn.Conv2d):
    """A convolution with an optional bfloat16 input gradient; an nn.Conv2d is turned into it by __class__."""

    backward_precision: BackwardPrecision
    bfloat16_weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        supported = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        bfloat16 = self.backward_precision.bfloat16 and supported
        if bfloat16 and input.requires_grad and torch.is_grad_enabled():
            return _BFloat16Convolution.apply(input, self, self.bfloat16_weight)
        return super().forward(input)


class _Linear(nn.Linear):
    """A linear layer with an optional bfloat16 input gradient; see ``_Conv2d``."""

    backward_precision: BackwardPrecision
    bfloat16_weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.backward_precision.bfloat16 and input.requires_grad and torch.is_grad_enabled():
            return _BFloat16Linear.apply(input, self, self.bfloat16_weight)
        return super().forward(input)


BFLOAT16_LAYERS: dict[type, Any] = {nn.Conv2d: _Conv2d, nn.Linear: _Linear}


class _BFloat16Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, bfloat16_weight: Tensor) -> Tensor:
        ctx.layer, ctx.bfloat16_weight, ctx.shape = layer, bfloat16_weight, x.shape
        return nn.Conv2d.forward(layer, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        layer: nn.Conv2d = ctx.layer
        # The input gradient needs only the shape of the input; ``expand`` allocates no memory for it.
        like = ctx.bfloat16_weight.new_empty(1).expand(ctx.shape)
        input_grad, _, _ = torch.ops.aten.convolution_backward(
            grad.bfloat16(), like, ctx.bfloat16_weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, [True, False, False],
        )  # fmt: skip
        return input_grad.float(), None, None


class _BFloat16Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, bfloat16_weight: Tensor) -> Tensor:
        ctx.bfloat16_weight = bfloat16_weight
        return functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.bfloat16() @ ctx.bfloat16_weight).float(), None, None
