"""What a training leaves behind: a folder with weights, the card that describes them, and the recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robustgen import strict
from robustgen.classifiers.user import neighbours
from robustgen.config import ModelCard, Weights, own_code
from robustgen.disk import write_bytes
from robustgen.errors import UserError
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


def publish(
    model: nn.Module, card: dict[str, Any], folder: Path, recipe_path: Path, *, half: bool = False
) -> None:
    """Write weights.safetensors, the recipe, its own code and card.yaml, the card last: it describes them.

    ``half`` stores the weights in float16. Claims of an older card are kept where the weights are the
    same bits, and dropped otherwise.
    """
    # copies: a safetensors file has no tensors that share memory, as tied weights do
    tensors = {key: value.contiguous().cpu().clone() for key, value in model.state_dict().items()}
    if half:
        tensors = {k: _half(k, v, folder) if v.is_floating_point() else v for k, v in tensors.items()}
    weights = to_safetensors(tensors)
    entry = Weights(sha256=hashlib.sha256(weights).hexdigest())
    file = folder / "card.yaml"
    before = strict.read(ModelCard, file) if file.is_file() else None
    same = before is not None and before.weights is not None and before.weights.sha256 == entry.sha256
    claims = [claim.model_dump(mode="json") for claim in before.claims] if before and same else []
    content = card | {"weights": entry.model_dump(), "claims": claims}
    order = [key for key in ModelCard.model_fields if key in content]
    text = yaml.safe_dump({k: content[k] for k in order}, sort_keys=False, allow_unicode=True, width=110)
    write_bytes(folder / entry.file, weights)
    _copy(recipe_path, folder / "recipe.yaml")
    if own := own_code(card["arch"]):
        source = recipe_path.parent / own[0]
        _copy(source, folder / own[0])
        for beside in neighbours(source):  # what it imports from its folder goes with it
            _copy(beside, folder / beside.relative_to(source.resolve().parent))
    write_bytes(file, text.encode())


def _half(name: str, value: Tensor, folder: Path) -> Tensor:
    stored = value.half()
    if bool((stored.isinf() & value.isfinite()).any()):
        raise UserError(
            "float16 cannot hold the trained weights", where=folder,
            expected="numbers of at most 65504", got=f"{float(value.abs().max()):g} in {name}",
            remedy="set storage: float32 in the recipe, and train again: it goes on from the end",
        )  # fmt: skip
    return stored


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        write_bytes(target, source.read_bytes())
