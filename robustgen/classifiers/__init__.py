"""Classifiers and denoisers: by name from the zoo, from a user's file, or from another library."""

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
    "build",
    "check_attributes",
    "check_fit",
    "fingerprint_model",
    "fingerprint_weights",
    "instantiate",
    "load",
    "load_model",
    "try_out",
    "warm_start_weights",
    "zoo_folder",
]  # fmt: skip


def load_model(
    reference: str | ModelRef, *, class_names: Sequence[str], input_shape: tuple[int, int, int]
) -> Classifier:
    """The classifier that a MODEL argument means, checked against the data's classes and shape.

    A plain ``nn.Module`` is taken to map pictures in [0, 1] to logits. Raises UserError where the
    argument means no model or several, where a user's code fails, and where the data does not fit.
    """
    ref = registry.resolve_one(reference) if isinstance(reference, str) else reference
    model = frozen(instantiate(ref, class_names, input_shape))
    if isinstance(model, Denoiser):
        raise UserError(f"{ref.name!r} is a denoiser, not a classifier", remedy="name a classifier")
    if not isinstance(model, Classifier):
        model = PlainClassifier(model, len(class_names), input_shape).eval()
    check_fit(model, ref, class_names, input_shape)
    if not isinstance(ref, ZooModel):
        _try_out(model, ref)
    return model


def check_fit(
    model: Classifier, ref: ModelRef, class_names: Sequence[str], input_shape: tuple[int, int, int]
) -> None:
    """UserError where a classifier is of other classes or pictures than the data's, or says not of which."""
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
    """UserError where a Classifier of somebody's own code lacks what the contract only declares."""
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
    """The module that a reference means, as its author left it: its mode and gradients untouched.

    The classes and the shape of the data are for those that are made to fit them.
    """
    if isinstance(ref, ZooModel):
        return load(ref.folder)
    if isinstance(ref, FileModel):
        return construct(import_file(ref.path, ref.attribute), where=f"{ref.path}:{ref.attribute}")
    if isinstance(ref, ObjectModel):
        return copy.deepcopy(ref.module)  # the user's own stays as it is
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
    except Exception as error:  # the code of another package: anything may come
        raise UserError(
            f"the model {name!r} of another package cannot be loaded",
            where=point.value,
            got=f"{type(error).__name__}: {error}",
        ) from None


def _try_out(model: Classifier, ref: ModelRef) -> None:
    """Call a foreign model once, so that its mistakes are found before a run and not within it."""
    try:
        try_out(model, ref)
    except UserError:
        raise
    except Exception as error:  # the user's code: anything may come
        raise UserError(
            f"the model {ref.name!r} fails on a batch of the data's shape",
            expected=f"logits of shape (2, {model.num_classes}) for pictures of shape "
            f"{(2, *model.input_shape)}",
            got=f"{type(error).__name__}: {error}",
            remedy="it must take any number of pictures of that shape, float32 and in [0, 1]",
        ) from None


def try_out(model: Classifier, ref: ModelRef) -> None:
    """Call a model on two pictures; UserError where what it returns are no logits, or it writes into the
    pictures. What it raises goes on to the caller."""
    shape = tuple(model.input_shape)
    # no two pixels alike: what is written into them may leave a plain grey as it is
    x = torch.linspace(0.1, 0.9, 2 * math.prod(shape)).view(2, *shape)
    given = x.clone()
    with torch.no_grad():
        logits = model.logits(given)
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, model.num_classes):
        raise UserError(
            f"the model {ref.name!r} returns something else than logits",
            expected=f"shape (2, {model.num_classes}) for pictures of shape {tuple(x.shape)}",
            got=f"{type(logits).__name__} of shape {shape}",
        )
    if not torch.equal(x, given):  # a PlainClassifier's module gets a copy, a Classifier does not
        raise UserError(
            f"the model {ref.name!r} writes into the pictures that it is given",
            expected="pictures left as they are: they are the data of every model after it",
            got="other pictures after a call",
            remedy="write x = x - mean in place of x -= mean, and the like",
        )
