"""Checkpoints of a training: one file, replaced as a whole, in the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from robustgen.errors import UserError
from robustgen.training.recipe import Recipe

FILE = "checkpoint.pt"


def cache_folder(recipe: Recipe) -> Path:
    """The folder of one training's checkpoints; another recipe of the same name has another."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "robustgen" / "training" / f"{recipe.name}-{recipe.fingerprint()}"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is either whole or absent: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers and strings."""
    write_atomically(path, lambda file: torch.save(content, file))


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
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}",
            remedy="delete the file; the training then starts anew",
        ) from None


class Curve:
    """The losses of a training, one JSON object a line, beside its checkpoint."""

    def __init__(self, path: Path, upto: int) -> None:
        """Open the curve and drop the lines after the step ``upto``, which will be done again."""
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= upto else []
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a crash cut short
        write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode()))
        self.path = path

    def add(self, step: int, parts: dict[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | {k: float(f"{v:.6g}") for k, v in parts.items()}) + "\n")
