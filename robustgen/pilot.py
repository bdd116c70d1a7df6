"""The pilot: how a model behaves and how it is to be called, measured on one batch before a run is planned.

The findings are written into run.json and never change within a run: kernels differ by batch size and
precision in the last bits, and so would rows.
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

BATCH_DIVISORS = (2, 4, 8)
"""The batch size divided by these is tried as a smaller size."""
MIN_SIZE = 8
"""The smallest size that is tried: below it, matrix products of some rows take other kernels."""
MIN_SPEEDUP = 1.15
"""Of a gradient in bfloat16 over one in float32, for ``auto`` to choose bfloat16."""
MIN_COSINE = 0.99
"""Between a gradient in bfloat16 and the exact one, for ``auto`` to choose bfloat16."""
MIN_VALUES = 1024
"""In pictures of at most so many values bfloat16 has never paid."""
ROUNDING = 1e-3
"""Share of the logits' median spread by which rounding may move a logit when the batch changes."""
GPU_CONTEXT = 600 << 20
"""Bytes of a GPU that a process takes before it holds a tensor."""
GPU_SLACK = 1.5
"""An attack holds more batches in memory than one gradient does, by about this factor."""
MAX_PER_GPU = 8
"""At most so many processes share a GPU."""


class Kernels(NamedTuple):
    """How a model is called throughout a run.

    ``batch``: pictures a call; ``threads``: of the processor; ``precision``: of attacks' gradients;
    ``sizes``: smaller batch sizes at which a row has the same bits as at the full one.
    """

    batch: int
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    sizes: Sequence[int] = []  # a list, as run.json gives it back


class Profile(NamedTuple):
    """How a model behaves where it will run, and how it is to be called there."""

    stochastic: bool
    """Whether two calls on the same pictures differ."""
    batch_dependent: bool
    """Whether a picture's logits depend on the other pictures of its batch."""
    kernels: Kernels
    gpu_share: float
    """How much of a GPU one worker needs; 0 on a processor."""


@torch.no_grad()
def is_random(model: Classifier, images: Tensor) -> bool:
    """Whether two calls of a model on the same pictures differ in any bit; NaN values are ignored.

    If the model fails on the whole batch (for one picture, or for lack of memory), the first part decides
    on which it does not fail: the last half, the last half of the rest, and so on. Raises UserError if it
    fails on all of them, since a run must not begin on a guess.
    """
    start, stop = 0, len(images)
    while True:
        try:
            one, other = (model.logits(images[start:stop]) for _ in range(2))
            return not bool(((one == other) | one.isnan() | other.isnan()).all())
        except Exception as error:  # the user's code
            if stop == 1:
                raise UserError(
                    "the model fails on every part of the first batch",
                    got=f"{type(error).__name__}: {error}",
                    remedy="'robustgen check MODEL' says more",
                ) from None  # fmt: skip
            start, stop = (stop // 2, stop) if stop == len(images) and start == 0 else (start // 2, start)


@torch.no_grad()
def batch_dependence(model: Classifier, images: Tensor) -> float:
    """The largest change of a picture's logits when its neighbours or its place in the batch change.

    0 if that is rounding, and if it cannot be measured: for a random model, and for one that refuses so
    small a batch.
    """
    few = images[:4]
    try:
        beside, again, alone, turned = map(model.logits, (few, few, few[:2], few.flip(0)))
    except Exception:  # the user's code
        return 0.0
    if model.stochastic or not torch.equal(beside, again):
        return 0.0
    gap = max((alone - beside[:2]).abs().max().item(), (turned.flip(0) - beside).abs().max().item())
    return gap if gap > ROUNDING * (beside.amax(1) - beside.amin(1)).median().item() else 0.0


def check_precision(precision: str) -> None:
    """Raise UserError for an unknown precision."""
    if precision not in ("auto", *get_args(Precision)):
        raise UserError(
            "unknown precision", where="--precision", expected="auto, float32 or bf16", got=precision
        )


def choose_kernels(model: Classifier, pictures: Tensor, precision: str) -> Kernels:
    """Try a model on one full batch of pictures, on their device and with the current number of threads.

    ``precision``: float32, bf16 or auto. Only gradients are computed in bfloat16; auto chooses it if it is
    clearly faster and close enough.
    """
    check_precision(precision)
    if precision == "bf16":
        need_bfloat16(pictures.device)
    plain = Kernels(len(pictures), pictures.device.type, torch.get_num_threads())
    worth_trying = (
        precision == "auto" and math.prod(model.input_shape) > MIN_VALUES and native_bfloat16(pictures.device)
    )
    for _ in range(2):  # a failure may be a passing one, and the whole run depends on what is found here
        try:
            quick = quick_copy(model, pictures) or model
            low = precision == "bf16" or (worth_trying and _speedup(quick, pictures) > MIN_SPEEDUP)
            sizes = _equal_sizes(model, quick, pictures, low)
            return plain._replace(precision="bf16" if low else "float32", sizes=sizes)
        except Exception:  # a model that fails: its chunks report it, each for itself
            continue
    return plain


def smaller_batches(batch: int) -> list[int]:
    """The sizes below ``batch`` at which rows may have the same bits, in rising order."""
    return sorted(batch // divisor for divisor in BATCH_DIVISORS if batch // divisor >= MIN_SIZE)


def _equal_sizes(model: Classifier, quick: Classifier, pictures: Tensor, low: bool) -> list[int]:
    """The smaller batch sizes at which every row has the bits that it has in the full batch.

    ``low``: whether the run takes gradients in bfloat16 (and in float32 for its audit). ValueError at a NaN.
    """
    whole = _outputs(model, quick, pictures, low)
    found = []
    for size in smaller_batches(len(pictures)):
        parts = [_outputs(model, quick, part, low) for part in pictures.split(size) if len(part) == size]
        joined = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        if any(bool(output.isnan().any()) for output in (*whole, *joined)):
            raise ValueError("a NaN is equal to nothing")
        if all(torch.equal(a, b[: len(a)]) for a, b in zip(joined, whole, strict=True)):
            found.append(size)
    return found


def _outputs(model: Classifier, quick: Classifier, pictures: Tensor, low: bool) -> list[Tensor]:
    """Everything of the model and its quick copy that a run computes: logits and gradients."""
    with torch.no_grad():
        outputs = [model.logits(pictures), quick.logits(pictures)]
    try:
        outputs.append(margin_gradient(quick, pictures))
        if not low:
            return outputs
        with bfloat16_gradients(quick):
            return [*outputs, margin_gradient(quick, pictures)]
    except RuntimeError:  # a model that cannot be differentiated: its gradients are never asked for
        return outputs


def _speedup(quick: Classifier, pictures: Tensor) -> float:
    """How many times faster a gradient is in bfloat16; 0 if it cannot be computed or is not close enough."""
    try:
        full, exact = _gradient_seconds(quick, pictures), margin_gradient(quick, pictures).flatten(1)
        with bfloat16_gradients(quick):
            near = functional.cosine_similarity(exact, margin_gradient(quick, pictures).flatten(1))
            # a forward that differentiates itself silently loses its second order
            return full / _gradient_seconds(quick, pictures) if bool((near > MIN_COSINE).all()) else 0.0
    except RuntimeError:
        return 0.0


def _gradient_seconds(quick: Classifier, pictures: Tensor) -> float:
    return best_time(lambda: margin_gradient(quick, pictures), pictures.device)


def best_time(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call keeps the device busy, the least of four: the first prepares kernels."""
    best = math.inf
    for _ in range(4):
        _synchronize(device)
        began = time.perf_counter()
        call()
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def margin_gradient(model: Classifier, pictures: Tensor) -> Tensor:
    """The gradient, of the pictures' shape, of the largest logit less the second largest.

    Attacks climb differences of logits, in which rounding weighs more than in one logit if all logits share
    a large part, as log-joints do. RuntimeError if the model cannot be differentiated.
    """
    x = pictures.clone().requires_grad_()
    with torch.enable_grad():
        best = model.logits(x).sort(1, descending=True).values
        return torch.autograd.grad((best[:, 0] - best[:, 1:2].sum(1)).sum(), x)[0]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_share(model: Classifier, pictures: Tensor) -> float:
    """How much of a GPU a worker needs, measured by one gradient of a full batch; 0 on a processor."""
    if pictures.device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    try:
        margin_gradient(model, pictures)
    except Exception:  # a model that fails: its chunks report it, each for itself
        return 1.0
    return share_of(torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1])


def share_of(peak: int, total: int) -> float:
    """The fraction 1/k of a GPU of ``total`` bytes that holds a process whose tensors took ``peak`` bytes."""
    return 1 / max(1, min(MAX_PER_GPU, math.floor(total / (GPU_SLACK * peak + GPU_CONTEXT))))
