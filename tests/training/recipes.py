"""Small recipes for the tests: networks of a few hundred weights on digits."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

TINY = {"width": 4, "blocks": [1], "pool": 2}


def tiny(**changes: Any) -> dict[str, Any]:
    """A recipe that trains in a second; ``changes`` replace its keys."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "family": "softmax",
        "data": "digits",
        "arch": "resnet-softmax",
        "options": TINY,
        "objective": {"kind": "cross-entropy"},
        "optimiser": {"kind": "adamw", "lr": 0.01},
        "steps": 30,
        "batch": 32,
        "checkpoint_every": 10,
        "summary": "A network for tests.",
    }
    return recipe | changes


def tiny_jem(**changes: Any) -> dict[str, Any]:
    """A JEM with a replay buffer, averaged weights and augmentation: all the state that a training has."""
    objective = {"kind": "sgld", "steps": 2, "step_size": 0.1, "noise": 0.01, "buffer": 100}
    recipe = tiny(
        family="jem",
        arch="jem",
        options={**TINY, "sigma": 0.05},
        objective=objective,
        optimiser={"kind": "adamw", "lr": 1e-3, "warm_up": 5},
        ema=0.9,
        augment={"shift": 1, "rotate": 5},
    )
    return recipe | changes


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def sha256(folder: Path) -> str:
    """Of the weights."""
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def only_checkpoint(cache: Path) -> Path:
    """The checkpoint of the one training of this test."""
    (found,) = cache.glob("robustgen/training/*/checkpoint.pt")
    return found
