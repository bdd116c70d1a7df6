"""Loads classifiers and denoisers: from the zoo, a user's file or package, or another library."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustgen import registry
from robustgen.classifiers.base import Classifier, Denoiser, PlainClassifier
from robustgen.classifiers.fingerprint import fingerprint_model, fingerprint_weights
from robustgen.classifiers.trained import build, frozen, load, warm_start_weights, zoo_folder
from robustgen.classifiers.user import construct, find_entry_point, import_file
from robustgen.errors import UserError
from robustgen.registry import EntryPointModel, FileModel, ModelRef, ObjectModel, ZooModel

__all__ = [
    "build", "check_attributes", "check_fit", "check_logits", "fingerprint_model", "fingerprint_weights",
    "instantiate", "load", "load_model", "warm_start_weights", "zoo_folder",
]  # fmt: skip


def load_model(
    reference: str | ModelRef, *, class_names: Sequence[str], input_shape: tuple[int, int, int]
) -> Classifier:
    """The classifier that a MODEL argument names, checked against the classes and shape of the data.

    A plain ``nn.Module`` must map images in [0, 1] to logits. Raises UserError if the argument names no
    model or several, if a user's code fails, and if the model does not fit the data.
    """
    ref = registry.resolve_one(reference) if isinstance(reference, str) else reference
    model = frozen(instantiate(ref, class_names, input_shape))
    if isinstance(model, Denoiser):
        raise UserError(f"{ref.name!r} is a denoiser, not a classifier", remedy="name a classifier")
    if not isinstance(model, Classifier):
        model = PlainClassifier(model, len(class_names), input_shape).eval()
    check_fit(model, ref, class_names, input_shape)
    if not isinstance(ref, ZooModel):
        _check_logits_of_user_model(model, ref)
    return model


def check_fit(
    model: Classifier, ref: ModelRef, class_names: Sequence[str], input_shape: tuple[int, int, int]
) -> None:
    """Raise UserError unless the classifier has the classes and input shape of the data."""
    check_attributes(model, ref)
    wanted, got = (len(class_names), tuple(input_shape)), (model.num_classes, tuple(model.input_shape))
    if wanted != got:
        raise UserError(
            f"the model {ref.name!r} does not fit the data",
            expected=f"{wanted[0]} classes, pictures of shape {wanted[1]}",
            got=f"{got[0]} classes, pictures of shape {got[1]}",
            remedy="name the data that the model was made for (--data, or the recipe's data)",
        )


def check_attributes(model: Classifier, ref: ModelRef) -> None:
    """Raise UserError if a classifier does not set ``num_classes`` and ``input_shape``."""
    classes, shape = (getattr(model, key, None) for key in ("num_classes", "input_shape"))
    fits = isinstance(shape, tuple | list | torch.Size) and len(shape) == 3
    for key, got, good, expected in (
        ("num_classes", classes, isinstance(classes, numbers.Integral), "the number of classes, such as 10"),
        ("input_shape", shape, fits, "(channels, height, width), such as (1, 28, 28)"),
    ):
        if not good:
            raise UserError(
                f"the classifier {ref.name!r} does not say its {key}",
                where=f"{type(model).__name__}.{key}",
                expected=expected,
                got="no such attribute" if got is None else repr(got),
                remedy=f"set self.{key} in its __init__, after super().__init__()",
            )


def instantiate(ref: ModelRef, class_names: Sequence[str], input_shape: tuple[int, int, int]) -> nn.Module:
    """The module that a reference names, its training mode and requires_grad unchanged.

    ``class_names`` and ``input_shape`` are used by diffusers pipelines, which are built for the data.
    """
    if isinstance(ref, ZooModel):
        return load(ref.folder)
    if isinstance(ref, FileModel):
        return construct(import_file(ref.path, ref.attribute), where=f"{ref.path}:{ref.attribute}")
    if isinstance(ref, ObjectModel):
        return copy.deepcopy(ref.module)  # the caller's module must not change
    if isinstance(ref, EntryPointModel):
        return construct(_entry_point(ref.name), where=f"entry point {ref.name}")
    from robustgen.classifiers import external, pipelines

    if ref.library == "diffusers":
        return pipelines.load(ref.model, class_names, input_shape)
    return external.load(ref.library, ref.model)


def _entry_point(name: str) -> Any:
    point = find_entry_point(name)
    try:
        return point.load()
    except Exception as error:  # the code of another package
        raise UserError(
            f"the model {name!r} of another package cannot be loaded",
            where=point.value,
            got=f"{type(error).__name__}: {error}",
        ) from None


def _check_logits_of_user_model(model: Classifier, ref: ModelRef) -> None:
    """``check_logits`` before a run, with any exception of the user's code as a UserError."""
    try:
        check_logits(model, ref)
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(
            f"the model {ref.name!r} fails on a batch of the data's shape",
            expected=f"logits of shape (2, {model.num_classes}) for pictures of shape "
            f"{(2, *model.input_shape)}, which rise from 0.1 to 0.9",
            got=f"{type(error).__name__}: {error}",
            remedy="it must take any pictures of that shape, however many, float32 and in [0, 1]",
        ) from None


def check_logits(model: Classifier, ref: ModelRef) -> None:
    """Call the model on two images; UserError unless it returns logits and leaves its input unchanged.

    An exception of the model itself is not caught.
    """
    shape = tuple(model.input_shape)
    # all pixels differ: an in-place change could leave a constant image unchanged
    x = torch.linspace(0.1, 0.9, 2 * math.prod(shape)).view(2, *shape)
    given = x.clone()
    with torch.no_grad():
        logits = model.logits(given)
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, model.num_classes):
        raise UserError(
            f"the model {ref.name!r} does not return logits",
            expected=f"shape (2, {model.num_classes}) for pictures of shape {tuple(x.shape)}",
            got=f"{type(logits).__name__} of shape {shape}",
            remedy=f"if the labels of the data go from 1 to {shape[1]}, number them from 0"
            if shape == (2, model.num_classes - 1)
            else None,
        )
    if not torch.equal(x, given):  # a PlainClassifier's module gets a copy, a Classifier does not
        raise UserError(
            f"the model {ref.name!r} changes its input in place",
            expected="input pictures unchanged after a call, since later models get the same ones",
            got="changed pictures",
            remedy="write x = x - mean instead of x -= mean",
        )
