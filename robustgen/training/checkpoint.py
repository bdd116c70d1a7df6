"""Checkpoints of a training: one file, replaced as a whole, in the user's cache folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from robustgen import classifiers, places
from robustgen.classifiers.user import digests
from robustgen.disk import append_line, cannot_write, write_bytes
from robustgen.errors import UserError, describe_error
from robustgen.registry import ZooModel
from robustgen.training.recipe import Recipe

FILE = "checkpoint.pt"


def cache_folder(recipe: Recipe, folder: Path) -> Path:
    """The folder of one training's checkpoints, by all that its recipe and its own code say of the weights.

    Another recipe of the same name has another folder, and so has the same recipe beside another
    ``model.py``, after a file that this one imports from there was changed, or after its warm start was
    trained anew. ``folder``: where the recipe lies.
    """
    file = recipe.code_file
    code = None if file is None else "".join(digests(folder / file))
    start = None
    if recipe.warm_start is not None:
        model = classifiers.zoo_folder(recipe.warm_start, where=f"{recipe.name}: warm_start")
        start = classifiers.fingerprint_model(ZooModel(recipe.warm_start, model))
    return places.cache_folder() / "training" / f"{recipe.name}-{recipe.fingerprint(code, start)}"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers and strings."""
    buffer = io.BytesIO()  # torch.save to a file tells a full disk as a RuntimeError without a reason
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def remove(path: Path) -> None:
    """Take a checkpoint away, where there is one; a disk that is read-only and the like are UserErrors."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none; it is read without running code from it."""
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
    """The losses of a training, one JSON object a line, beside its checkpoint."""

    def __init__(self, path: Path, upto: int) -> None:
        """Open the curve and drop the lines after the step ``upto``, which will be done again."""
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
