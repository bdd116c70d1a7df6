"""Fingerprints of models, which identify them in stored runs."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import torch
from torch import nn

from robustgen import registry, strict
from robustgen.classifiers.trained import denoiser_folder
from robustgen.classifiers.user import code_digests, find_entry_point
from robustgen.config import ModelCard, own_code
from robustgen.environment import version_of
from robustgen.registry import EntryPointModel, FileModel, ModelRef, ObjectModel, OutsideModel, ZooModel


def fingerprint_model(ref: ModelRef) -> str:
    """A hash of the model's code and, for a zoo model, of its weights."""
    content: list[Any] = [type(ref).__name__]
    if isinstance(ref, ZooModel):
        card: ModelCard = registry.load_card(ref.folder)
        content += [card.arch, card.options, card.weights and card.weights.sha256]
        if card.over is not None:
            folder = denoiser_folder(card.over, ref.folder / "card.yaml")
            content.append(fingerprint_model(ZooModel(card.over, folder)))
        if own := own_code(card.arch):
            content += code_digests(ref.folder / own[0])
    elif isinstance(ref, FileModel):
        file, *beside = code_digests(ref.path)
        content += [file, ref.attribute, *beside]
    elif isinstance(ref, ObjectModel):
        parts = dict(ref.module.named_modules())
        kinds = {type(part) for part in parts.values() if not type(part).__module__.startswith("torch.")}
        content += [repr(ref.module), sorted(map(_source, kinds))]
        content += [{name: _settings(part) for name, part in parts.items()}]
    elif isinstance(ref, EntryPointModel):
        point = find_entry_point(ref.name)
        content += [point.value, point.dist.version if point.dist else ""]
    elif isinstance(ref, OutsideModel):
        content += [ref.library, ref.model, version_of(ref.library)]
    return strict.fingerprint(content)


def fingerprint_weights(ref: ModelRef, model: nn.Module) -> str:
    """A hash of the model's code and of its loaded weights.

    The weights are hashed as they are in memory, since a user's file may load them from anywhere.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return strict.fingerprint([fingerprint_model(ref), digest.hexdigest()])


def _settings(module: nn.Module) -> dict[str, str]:
    """Plain attributes, such as a temperature, which are in neither the module's code nor its state_dict."""
    found = {}
    for key, value in vars(module).items():
        values = value if isinstance(value, tuple | list) else [value]
        if key != "training" and all(isinstance(v, bool | int | float | str | None) for v in values):
            found[key] = repr(value)
    return found


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # defined in an interactive session
        return kind.__qualname__
