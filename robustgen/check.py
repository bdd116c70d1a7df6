"""``robustgen check MODEL``: finds the usual mistakes in a model, and says how to correct them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from robustgen.classifiers import check_attributes, check_logits, instantiate
from robustgen.classifiers.base import Classifier, Denoiser, PlainClassifier
from robustgen.data import Dataset
from robustgen.errors import UserError
from robustgen.pilot import batch_dependence
from robustgen.registry import ModelRef

TOLERANCE = 1e-6
"""Rounding that is allowed when outputs are taken for probabilities."""
MIN_PICTURES = 8
"""A model is checked on at least so many pictures, however many network calls each costs."""
MAX_VALUES = 2**20
"""Pixel values in one call of a model: with its gradients, 256 large pictures would not fit into memory."""


class Problem(NamedTuple):
    """One finding: an ``error`` makes numbers wrong, a ``warning`` deserves a look."""

    severity: str
    what: str
    remedy: str


def check(reference: ModelRef, dataset: Dataset, n: int = 256) -> list[Problem]:
    """Look for the usual mistakes on n pictures of a data set; the list is empty if none was found.

    The pictures are spread evenly over the data set, since those of a folder come class by class. A model of
    many network calls a picture gets fewer.
    """
    model = _load(reference, dataset)
    n = min(len(dataset), max(MIN_PICTURES, n // model.calls_per_image))
    chosen = torch.arange(n) * len(dataset) // n
    x, y = dataset.images[chosen], dataset.labels[chosen]
    problems = list(_check_mode(model, x))
    model.eval()
    logits = _try_logits(model, x, len(dataset.class_names))
    if isinstance(logits, Problem):
        return [*problems, logits]
    problems += _check_made_pictures(model, reference)
    problems += _check_probabilities(logits)
    problems += _check_determinism(model, x, logits)
    problems += _check_batch_dependence(model, x)
    problems += _check_gradient(model, x, y)
    problems += _check_normalisation(model, x, y, logits)
    return problems


def _load(reference: ModelRef, dataset: Dataset) -> Classifier:
    """The model, not yet in eval mode: the mode in which it arrives is one of the things to check."""
    module = instantiate(reference, dataset.class_names, dataset.shape)
    if isinstance(module, Denoiser):
        raise UserError(f"{reference.name!r} is a denoiser, not a classifier", remedy="name a classifier")
    if isinstance(module, Classifier):
        check_attributes(module, reference)
        return module
    return PlainClassifier(module, len(dataset.class_names), dataset.shape)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The pictures, split into calls that fit into memory."""
    return x.split(max(1, MAX_VALUES // x[0].numel()))


def _logits(model: Classifier, x: Tensor) -> Tensor:
    """The model's logits; anything else that it returns, of the first call only."""
    found = [model.logits(part) for part in _parts(x)]
    return torch.cat(found) if all(isinstance(part, Tensor) and part.ndim for part in found) else found[0]


def _try_logits(model: Classifier, x: Tensor, classes: int) -> Tensor | Problem:
    """The logits, or why there are none that the other checks could look at."""
    given = x.clone()
    try:
        with torch.no_grad():
            logits = _logits(model, given)
    except Exception as error:  # the user's code
        wanted = f"float32 pictures of shape {tuple(x.shape)} in [0, 1]"
        what = f"the model raises {type(error).__name__}: {error}"
        return Problem("error", what, f"it must accept {wanted}")
    if not torch.equal(given, x):
        return Problem(
            "error", "the model writes into the pictures that it is given",
            "write x = x - mean in place of x -= mean, and the like",
        )  # fmt: skip
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (len(x), classes):
        return Problem(
            "error",
            f"wrong number of classes or shape: expected {(len(x), classes)}, got {got}",
            f"return one logit for each of the {classes} classes",
        )
    finite = torch.isfinite(logits).all(1).float().mean().item()
    if finite < 1:
        return Problem(
            "error",
            f"NaN or infinite outputs for {1 - finite:.0%} of the pictures",
            "look for log(0), division by zero or overflow in half precision",
        )
    return logits


def _check_made_pictures(model: Classifier, reference: ModelRef) -> Iterator[Problem]:
    """What a report asks first: two pictures that no data set has, as attacks make them."""
    try:
        check_logits(model, reference)
    except UserError as error:
        yield Problem("error", str(error), "it must answer for any pictures in [0, 1]")
    except Exception as error:  # the user's code
        yield Problem(
            "error",
            "the model answers for pictures of the data, but not for two that rise from 0.1 to 0.9: it "
            f"raises {type(error).__name__}: {error}",
            "it must answer for any pictures in [0, 1], since attacks and corruptions leave the data",
        )


def _check_mode(model: Classifier, x: Tensor) -> Iterator[Problem]:
    """Whether the model arrives in train mode, and answers differently there."""
    inner = model.module if isinstance(model, PlainClassifier) else model
    if not inner.training:
        return
    try:
        with torch.no_grad():
            # on copies, since this moves batch-norm's statistics; twice in eval mode, since the model may be
            # random there too
            train, once, again = (
                copy.deepcopy(inner).train(mode)(x[:32].clone()) for mode in (True, False, False)
            )
            same = torch.equal(train.nan_to_num(), once.nan_to_num())
            same = same or not torch.equal(once.nan_to_num(), again.nan_to_num())
    except Exception:
        return  # the forward pass that follows reports the failure
    if not same:
        yield Problem(
            "warning",
            "the model arrives in train mode, where it answers differently (dropout, batch-norm)",
            "call model.eval() before returning it; robustgen evaluates in eval mode",
        )


def _check_probabilities(logits: Tensor) -> Iterator[Problem]:
    inside = bool(((logits >= -TOLERANCE) & (logits <= 1 + TOLERANCE)).all())
    if inside and bool(((logits.sum(1) - 1).abs() < 10 * TOLERANCE).all()):
        yield Problem(
            "error",
            "the outputs are probabilities (softmax), not logits: gradients vanish, so attacks fail",
            "remove the last softmax, or return log-probabilities",
        )


def _check_determinism(model: Classifier, x: Tensor, logits: Tensor) -> Iterator[Problem]:
    with torch.no_grad():
        again = [_logits(model, x) for _ in range(3)]
    if not model.stochastic and any(not torch.equal(logits, other) for other in again):
        gap = max((logits - other).abs().max().item() for other in again)
        yield Problem(
            "warning",
            f"the forward pass is random: the same pictures give logits that differ by up to {gap:.3g}",
            "declare it (stochastic = True) and reseed a generator of its own in reseed(seed); it is judged "
            "by many draws, which take many times longer, unless its noise is drawn once",
        )


def _check_batch_dependence(model: Classifier, x: Tensor) -> Iterator[Problem]:
    gap = batch_dependence(model, x)
    if gap:
        yield Problem(
            "error",
            "a picture's logits depend on the pictures beside it, or on its place among them: they differ by "
            f"up to {gap:.3g}",
            "take out of forward() statistics of the batch, such as batch-norm without running ones, and "
            "noise that is drawn from one seed for the whole batch",
        )


def _check_gradient(model: Classifier, x: Tensor, y: Tensor) -> Iterator[Problem]:
    remedy = "no detach(), no_grad(), numpy or rounding between the picture and the logits"
    found: list[Tensor] = []
    try:
        for part, labels in zip(_parts(x), y.split(len(_parts(x)[0])), strict=True):
            part = part.clone().requires_grad_()
            with torch.enable_grad():
                loss = nn.functional.cross_entropy(model.logits(part), labels, reduction="sum")
                found += torch.autograd.grad(loss, part)
    except RuntimeError as error:
        yield Problem("error", f"there is no gradient from logits to pixels ({error})", remedy)
        return
    gradient = torch.cat(found)
    if not bool(torch.isfinite(gradient).all()):
        yield Problem(
            "error", "the gradient in pixels has NaN or infinite values", "look for sqrt(0) or log(0)"
        )
        return
    zero = (gradient.flatten(1).abs().amax(1) == 0).float().mean().item()
    if zero > 0:
        yield Problem(
            "error" if zero > 0.5 else "warning",
            f"the cross-entropy's gradient is exactly zero for {zero:.0%} of the pictures: attacks are blind",
            remedy + "; logits with very large gaps underflow: rescale them",
        )


def _check_normalisation(model: Classifier, x: Tensor, y: Tensor, logits: Tensor) -> Iterator[Problem]:
    """Whether the model expects another range of pixels; if not, whether it is better than chance."""
    right = logits.argmax(1) == y
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    ranges = {"(x - mean) / std": (x - mean) / std, "2x - 1": 2 * x - 1, "255 x": 255 * x}
    by_range = {"[0, 1]": right}
    for name, z in ranges.items():
        with contextlib.suppress(Exception), torch.no_grad():  # the model may refuse other ranges
            by_range[name] = _logits(model, z).argmax(1) == y
    best = max(by_range, key=lambda name: by_range[name].sum().item())
    gained = int((by_range[best] & ~right).sum())
    lost = int((right & ~by_range[best]).sum())
    # Sign test on the pictures whose prediction changes: is the other range better beyond chance?
    if gained > lost and binomtest(gained, gained + lost, alternative="greater").pvalue < 0.001:
        yield Problem(
            "error",
            f"normalisation is outside the model: {_share(right)} right on pictures in [0, 1], "
            f"{_share(by_range[best])} on {best}",
            "put it into forward(): eps and corruptions are defined on [0, 1]",
        )
    elif binomtest(int(right.sum()), len(y), _largest_share(y), alternative="greater").pvalue > 0.01:
        yield Problem(
            "warning", f"only {_share(right)} right, near chance", "is it trained, and for this data set?"
        )


def _largest_share(y: Tensor) -> float:
    """The accuracy of always predicting the most frequent class."""
    return float(y.bincount().max()) / len(y)


def _share(right: Tensor) -> str:
    return f"{right.float().mean().item():.1%}"
