"""Writes the result of a training: a folder with the weights, their card, the recipe and its code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robustgen import registry, strict
from robustgen.classifiers import fingerprint_model
from robustgen.classifiers.user import local_imports
from robustgen.config import ModelCard, Weights
from robustgen.disk import write_bytes
from robustgen.errors import UserError
from robustgen.registry import ZooModel
from robustgen.training.recipe import Recipe


def draft_card(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The card of a model before training, without weights; the model is named after its folder."""
    content = {
        "name": folder.resolve().name,
        **{key: getattr(recipe, key) for key in ("family", "summary", "data", "arch")},
        **{key: getattr(recipe, key) for key in ("licence", "reference", "published", "tried")},
    }
    strict.validate(ModelCard, content, where=folder)
    return content


def source_files(recipe: Recipe, path: Path) -> dict[str, bytes]:
    """The contents, by path in the model's folder, of the files to publish beside the weights: the recipe
    at ``path``, its code, and the local imports of that."""
    files = {"recipe.yaml": path}
    if recipe.code_file is not None:
        code = path.parent / recipe.code_file
        files |= {recipe.code_file: code}
        files |= {str(beside.relative_to(code.resolve().parent)): beside for beside in local_imports(code)}
    try:
        return {name: file.read_bytes() for name, file in files.items()}
    except OSError as error:
        raise UserError("cannot read the file", where=error.filename, got=error.strerror) from None


def check_same_training(recipe: Recipe, files: dict[str, bytes], folder: Path) -> None:
    """Raise UserError if ``folder`` holds a model that another recipe or other code made.

    ``files``: see ``source_files``.
    """
    if not all((folder / name).is_file() for name in ("card.yaml", "recipe.yaml")):
        return
    before = strict.read(Recipe, folder / "recipe.yaml")
    if before.fingerprint() == recipe.fingerprint():
        changes = []
    else:  # texts, such as the summary, may differ
        old, new = (r.model_dump(mode="json", exclude={"summary", "tried"}) for r in (before, recipe))
        changes = [f"{key}: {old[key]} -> {new[key]}" for key in new if new[key] != old[key]]
    code = [name for name in files if name != "recipe.yaml" and (folder / name).is_file()]
    changes += [f"another {name}" for name in code if (folder / name).read_bytes() != files[name]]
    if changes:
        raise UserError(
            "this folder holds a model that was trained otherwise", where=folder,
            expected="a new folder, or the same recipe and code", got="; ".join(changes[:6]),
            remedy="choose another --out, or replace that model with --fresh",
        )  # fmt: skip


def keep_edits(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Copy the files in ``folder`` that were edited since ``files`` were read to NAME.edited, before they are
    overwritten by what was trained; returns the copies."""
    kept = []
    for name, content in files.items():
        file = folder / name
        if file.is_file() and (now := file.read_bytes()) != content:
            kept.append(file.with_name(f"{file.name}.edited"))
            write_bytes(kept[-1], now)
    return kept


def publish(
    model: nn.Module, card: dict[str, Any], folder: Path, files: dict[str, bytes], *, half: bool = False
) -> None:
    """Write weights.safetensors, ``files`` (see ``source_files``), and the card last.

    ``half`` stores the weights in float16. The claims of an older card are kept if the model is the same
    (weights, options, code, data), and dropped otherwise.
    """
    tensors = to_tensors(model)
    if half:
        tensors = {k: _to_float16(k, v, folder) if v.is_floating_point() else v for k, v in tensors.items()}
    weights = to_safetensors(tensors)
    entry = Weights(sha256=hashlib.sha256(weights).hexdigest())
    claims = _claims(folder, card["data"])
    before = _fingerprint(folder) if claims else None
    write_bytes(folder / entry.file, weights)
    for name, content in files.items():
        file = folder / name
        if not (file.is_file() and file.read_bytes() == content):
            write_bytes(file, content)
    written = card | {"weights": entry.model_dump(), "claims": []}
    _write_card(folder, written)
    if before is not None and _fingerprint(folder) == before:
        _write_card(folder, written | {"claims": claims})


def to_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict for a safetensors file; UserError for an entry that is not a tensor."""
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                "the weights of this network cannot be stored", where=f"state_dict: {key}",
                expected="tensors alone", got=type(value).__name__,
                remedy="make it a buffer, or leave it out of the state",
            )  # fmt: skip
    # copies, since safetensors rejects tensors that share memory, such as tied weights
    return {key: value.contiguous().cpu().clone() for key, value in state.items()}


def _claims(folder: Path, data: str) -> list[dict[str, Any]]:
    """The claims of the card in a folder if it is of that data; none if there is no readable card."""
    try:
        card = registry.load_card(folder.resolve())
    except UserError:
        return []
    return [claim.model_dump(mode="json") for claim in card.claims] if card.data == data else []


def _fingerprint(folder: Path) -> str | None:
    """The fingerprint of the model in a folder; None if there is no readable one."""
    folder = folder.resolve()
    try:
        return fingerprint_model(ZooModel(folder.name, folder))
    except UserError:
        return None


def _write_card(folder: Path, content: dict[str, Any]) -> None:
    order = [key for key in ModelCard.model_fields if key in content]
    text = yaml.safe_dump({k: content[k] for k in order}, sort_keys=False, allow_unicode=True, width=110)
    write_bytes(folder / "card.yaml", text.encode())


def _to_float16(name: str, value: Tensor, folder: Path) -> Tensor:
    stored = value.half()
    if bool((stored.isinf() & value.isfinite()).any()):
        raise UserError(
            "float16 cannot hold the trained weights", where=folder,
            expected="numbers of at most 65504", got=f"{float(value.abs().max()):g} in {name}",
            remedy="set storage: float32 in the recipe, and train again: it goes on from the end",
        )  # fmt: skip
    return stored
