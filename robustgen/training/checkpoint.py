"""Checkpoints: one file per training, replaced atomically, in the user's cache folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from robustgen import classifiers, places
from robustgen.classifiers.user import code_digests
from robustgen.disk import append_line, cannot_write, write_bytes
from robustgen.errors import UserError, describe_error
from robustgen.registry import ZooModel
from robustgen.training.recipe import Recipe

FILE = "checkpoint.pt"


def cache_folder(recipe: Recipe, folder: Path) -> Path:
    """The folder of a training's checkpoint, named by a hash of everything that decides the weights.

    It differs if the recipe, the ``model.py`` beside it, a file that this imports from there, or the model
    of its warm start has changed. ``folder``: the folder of the recipe.
    """
    file = recipe.code_file
    code = None if file is None else "".join(code_digests(folder / file))
    start = None
    if recipe.warm_start is not None:
        model = classifiers.zoo_folder(recipe.warm_start, where=f"{recipe.name}: warm_start")
        start = classifiers.fingerprint_model(ZooModel(recipe.warm_start, model))
    return places.cache_folder() / "training" / f"{recipe.name}-{recipe.fingerprint(code, start)}"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers and strings."""
    buffer = io.BytesIO()  # torch.save to a full disk raises a RuntimeError without a reason
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def remove(path: Path) -> None:
    """Delete a checkpoint if there is one; UserError if the disk does not allow it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint, loaded without running code from it; None if there is none."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UserError(
            "cannot read the checkpoint of this training",
            where=path,
            got=describe_error(error),
            remedy="delete the file; the training then starts anew",
        ) from None


class Curve:
    """The loss curve of a training: a file of one JSON object per line, beside the checkpoint."""

    def __init__(self, path: Path, upto: int) -> None:
        """Open the curve and drop the lines after the step ``upto``, which will be repeated."""
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= upto else []
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a crash cut short
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        self.path = path

    def add(self, step: int, parts: dict[str, float]) -> None:
        """Append one line."""
        line = json.dumps({"step": step} | {k: float(f"{v:.6g}") for k, v in parts.items()})
        append_line(self.path, line)
