"""What a training leaves behind: a folder with weights, the card that describes them, and the recipe."""

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


def draft(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The card of a model that is not trained yet; its name is that of its folder."""
    content = {
        "name": folder.resolve().name,
        **{key: getattr(recipe, key) for key in ("family", "summary", "data", "arch")},
        **{key: getattr(recipe, key) for key in ("licence", "reference", "published", "tried")},
    }
    strict.validate(ModelCard, content, where=folder)
    return content


def sources(recipe: Recipe, path: Path) -> dict[str, bytes]:
    """What is published beside the weights: the recipe at ``path``, its own code, and what that imports from
    its folder, by their places in the model's folder."""
    files = {"recipe.yaml": path}
    if recipe.code_file is not None:
        code = path.parent / recipe.code_file
        files |= {recipe.code_file: code}
        files |= {str(beside.relative_to(code.resolve().parent)): beside for beside in local_imports(code)}
    try:
        return {name: file.read_bytes() for name, file in files.items()}
    except OSError as error:
        raise UserError("cannot read the file", where=error.filename, got=error.strerror) from None


def keep_edits(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Where a model is trained from its own folder: files that were edited since ``files`` were read are
    kept as NAME.edited, which this returns: they are not what was trained."""
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
    """Write weights.safetensors, ``files`` (see ``sources``) and card.yaml, the card last: it describes them.

    ``half`` stores the weights in float16. Claims of an older card are kept where its model is the same,
    weights, options and code, on the same data, and dropped otherwise.
    """
    tensors = to_tensors(model)
    if half:
        tensors = {k: _half(k, v, folder) if v.is_floating_point() else v for k, v in tensors.items()}
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
    """The weights of a model as a safetensors file takes them; what is no tensor is a UserError."""
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                "the weights of this network cannot be stored", where=f"state_dict: {key}",
                expected="tensors alone", got=type(value).__name__, remedy="make it a buffer, or no state",
            )  # fmt: skip
    # copies: a safetensors file has no tensors that share memory, as tied weights do
    return {key: value.contiguous().cpu().clone() for key, value in state.items()}


def _claims(folder: Path, data: str) -> list[dict[str, Any]]:
    """What the card in a folder claims on that data; nothing where there is no card that can be read."""
    try:
        card = registry.load_card(folder.resolve())
    except UserError:
        return []
    return [claim.model_dump(mode="json") for claim in card.claims] if card.data == data else []


def _fingerprint(folder: Path) -> str | None:
    """Of the model in a folder as it lies there; None where there is none that can be read."""
    folder = folder.resolve()
    try:
        return fingerprint_model(ZooModel(folder.name, folder))
    except UserError:
        return None


def _write_card(folder: Path, content: dict[str, Any]) -> None:
    order = [key for key in ModelCard.model_fields if key in content]
    text = yaml.safe_dump({k: content[k] for k in order}, sort_keys=False, allow_unicode=True, width=110)
    write_bytes(folder / "card.yaml", text.encode())


def _half(name: str, value: Tensor, folder: Path) -> Tensor:
    stored = value.half()
    if bool((stored.isinf() & value.isfinite()).any()):
        raise UserError(
            "float16 cannot hold the trained weights", where=folder,
            expected="numbers of at most 65504", got=f"{float(value.abs().max()):g} in {name}",
            remedy="set storage: float32 in the recipe, and train again: it goes on from the end",
        )  # fmt: skip
    return stored
