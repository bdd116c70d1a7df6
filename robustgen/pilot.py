"""How a model is called, found out on a fixed set of pictures before a run is planned.

What comes out is written into run.json and never changes within a run: kernels that differ by batch
size or precision would otherwise differ in the last bits of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.quick import bfloat16_gradients, need_bfloat16, quick_copy
from robustgen.environment import native_bfloat16
from robustgen.errors import UserError
from robustgen.types import Precision

PARTS = (2, 4, 8)  # a batch is tried cut into so many
LEAST = 8  # pictures: smaller products take other kernels, for some rows and not for others
WORTH = 1.15  # a gradient in bfloat16 must be so many times faster
ALIKE = 0.99  # cosine of a gradient in bfloat16 with the exact one
SMALL = 1024  # values of a picture; up to here bfloat16 never paid
OF_THE_SPREAD = 1e-3  # of the logits' median spread: rounding moves them by less when the batch changes


class Kernels(NamedTuple):
    """How a model is called throughout a run.

    ``batch``: pictures a call; ``threads``: of the processor; ``precision``: of attacks' gradients;
    ``sizes``: the batches as good as the full one, since a row's bits are the same in them.
    """

    batch: int
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    sizes: Sequence[int] = []  # a list, as run.json gives it back


@torch.no_grad()
def moved_by_others(model: Classifier, images: Tensor) -> float:
    """The largest change of a picture's logits when its neighbours or its place in the batch change.

    0 where that is rounding, and where nothing can be said: of a random model, or one that refuses so small
    a batch.
    """
    few = images[:4]
    try:
        beside, again, alone, turned = map(model.logits, (few, few, few[:2], few.flip(0)))
    except Exception:  # the user's code
        return 0.0
    if model.stochastic or not torch.equal(beside, again):
        return 0.0
    gap = max((alone - beside[:2]).abs().max().item(), (turned.flip(0) - beside).abs().max().item())
    return gap if gap > OF_THE_SPREAD * (beside.amax(1) - beside.amin(1)).median().item() else 0.0


def check_precision(precision: str) -> None:
    """Raise UserError where there is no such precision."""
    if precision not in ("auto", *get_args(Precision)):
        raise UserError(
            "unknown precision", where="--precision", expected="auto, float32 or bf16", got=precision
        )


def pilot(model: Classifier, pictures: Tensor, precision: str) -> Kernels:
    """Try a model on one full batch of pictures, here and with as many threads as are set; ``precision`` is
    float32, bf16 or auto.

    bfloat16 is for gradients alone, and is taken by auto where it is clearly faster.
    """
    check_precision(precision)
    if precision == "bf16":
        need_bfloat16(pictures.device)
    plain = Kernels(len(pictures), pictures.device.type, torch.get_num_threads())
    worth_trying = (
        precision == "auto" and math.prod(model.input_shape) > SMALL and native_bfloat16(pictures.device)
    )
    for _ in range(2):  # what fails once is no property of the model, and a run depends on what is found here
        try:
            quick = quick_copy(model, pictures) or model
            low = precision == "bf16" or (worth_trying and _gain(quick, pictures) > WORTH)
            sizes = _sizes(model, quick, pictures, low)
            return plain._replace(precision="bf16" if low else "float32", sizes=sizes)
        except Exception:  # a model that fails: its chunks say so, each for itself
            continue
    return plain


def smaller_batches(batch: int) -> list[int]:
    """The sizes below ``batch`` at which rows may have the same bits, in rising order."""
    return sorted(batch // parts for parts in PARTS if batch // parts >= LEAST)


def _sizes(model: Classifier, quick: Classifier, pictures: Tensor, low: bool) -> list[int]:
    """The parts of a batch whose rows get the bits that they get in the whole batch, ValueError at a NaN;
    ``low``: whether the run takes gradients in bfloat16, float32 ones for its audit beside."""
    whole = _bits(model, quick, pictures, low)
    found = []
    for size in smaller_batches(len(pictures)):
        parts = [_bits(model, quick, part, low) for part in pictures.split(size) if len(part) == size]
        joined = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        if any(bool(bits.isnan().any()) for bits in (*whole, *joined)):
            raise ValueError("a NaN is equal to nothing")
        if all(torch.equal(a, b[: len(a)]) for a, b in zip(joined, whole, strict=True)):
            found.append(size)
    return found


def _bits(model: Classifier, quick: Classifier, pictures: Tensor, low: bool) -> list[Tensor]:
    with torch.no_grad():
        bits = [model.logits(pictures), quick.logits(pictures)]
    try:
        bits.append(gradient(quick, pictures))
        if not low:
            return bits
        with bfloat16_gradients(quick):
            return [*bits, gradient(quick, pictures)]
    except RuntimeError:  # a model that cannot be differentiated: its gradients are never asked for
        return bits


def _gain(quick: Classifier, pictures: Tensor) -> float:
    """How many times faster a gradient is in bfloat16; 0 where there is none."""
    try:
        full, exact = _seconds(quick, pictures), gradient(quick, pictures).flatten(1)
        with bfloat16_gradients(quick):
            near = functional.cosine_similarity(exact, gradient(quick, pictures).flatten(1))
            # a forward that differentiates itself loses its second order without a word
            return full / _seconds(quick, pictures) if bool((near > ALIKE).all()) else 0.0
    except RuntimeError:
        return 0.0


def _seconds(quick: Classifier, pictures: Tensor) -> float:
    return seconds(lambda: gradient(quick, pictures), pictures.device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a call's work on the device, the best of four: the first prepares kernels."""
    best = math.inf
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def gradient(model: Classifier, pictures: Tensor) -> Tensor:
    """Of the first class's lead over the second, in each picture's own order, of the pictures' shape;
    RuntimeError of a model that cannot be differentiated.

    A lead, since attacks climb differences of logits: rounding takes more of these than of one logit where
    logits share a large part, as log-joints do.
    """
    x = pictures.clone().requires_grad_()
    with torch.enable_grad():
        best = model.logits(x).sort(1, descending=True).values
        return torch.autograd.grad((best[:, 0] - best[:, 1:2].sum(1)).sum(), x)[0]


def _wait(device: torch.device) -> None:
    """For a GPU to do what it was told to: a call comes back before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
