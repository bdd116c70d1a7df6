"""The content of run.json: what a run's rows depend on, and what else the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustgen.classifiers import fingerprint_weights
from robustgen.classifiers.base import Classifier
from robustgen.config import Protocol
from robustgen.data import Dataset
from robustgen.environment import environment, row_code
from robustgen.evaluation import Plan
from robustgen.pilot import Profile
from robustgen.registry import ModelRef, ZooModel, load_card
from robustgen.types import VERDICT_DRAWS


def run_spec(
    reference: ModelRef, model: Classifier, protocol: Protocol, dataset: Dataset, planned: Plan,
    profile: Profile,
) -> dict[str, Any]:  # fmt: skip
    """A run's specification. Its rows depend on ``identity`` and the evaluations' descriptions only."""
    identity = _identity(reference, model, protocol, dataset, planned, profile)
    return {
        "identity": identity,
        "model": {
            "name": reference.name,
            "fingerprint": identity["model"],
            **_of_card(reference),
            **_of_model(model, profile),
        },
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "provenance": dataset.provenance,
            "class_names": list(dataset.class_names),
            "class_sizes": torch.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist(),
            "size": len(dataset),
            "shape": list(dataset.shape),
        },
        "protocol": protocol.model_dump(mode="json", exclude={"n"}),
        "evaluations": [evaluation.describe() for evaluation in planned.evaluations],
        "refused": planned.refused,
        "kernels": identity["kernels"],
    }


def run_environment(reference: ModelRef, root: Path | None) -> dict[str, str]:
    """Where and with what a run was computed, as far as its rows do not depend on it."""
    where = {"data_root": str(root.resolve())} if root else {}
    return environment() | {"reference": str(reference)} | where


def _identity(
    reference: ModelRef, model: Classifier, protocol: Protocol, dataset: Dataset, planned: Plan,
    profile: Profile,
) -> dict[str, Any]:  # fmt: skip
    packages = environment()
    versions = {name: packages.get(name) for name in ("robustgen", "torch", "scipy", *libraries(planned))}
    return {
        "model": fingerprint_weights(reference, model),
        "data": dataset.fingerprint,
        "seed": protocol.seed,
        "chunk": protocol.chunk,
        "kernels": profile.kernels._asdict(),
        "versions": versions,
        "code": row_code(),
        **({"draws": VERDICT_DRAWS} if profile.stochastic else {}),
    }


def _of_card(reference: ModelRef) -> dict[str, Any]:
    if not isinstance(reference, ZooModel):
        return {"family": "custom", "summary": "", "data": "", "calls": 1}
    card = load_card(reference.folder)
    return {"family": card.family, "summary": card.summary, "data": card.data, "calls": card.calls}


def _of_model(model: Classifier, profile: Profile) -> dict[str, Any]:
    return {
        "num_classes": model.num_classes,
        "input_shape": list(model.input_shape),
        "supports": sorted(model.supports),
        "density": model.density,
        "noise": repr(model.noise),
        "stochastic": profile.stochastic,
        **({"stochastic_declared": model.stochastic} if profile.stochastic else {}),
        **({"mixes": True} if profile.batch_dependent else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


OPENCV = ("opencv-python", "opencv-python-headless")
CORRUPTION_PACKAGES = {
    "jpeg_compression": ("pillow",),
    "frost": ("pillow", "imagecorruptions"),
    "imagenet-constants:frost": OPENCV,
    "spatter": OPENCV,
    "imagenet-c:": ("pillow", "imagecorruptions", "scikit-image", *OPENCV),
}
"""The packages on whose versions a corruption's bits depend, by a part of its name."""


def libraries(planned: Plan) -> list[str]:
    """The packages of a plan's outside attacks and corruptions, on whose versions rows depend."""
    named = {str(e.detail["attack"]).partition("-")[0] for e in planned.evaluations if e.kind == "attack"}
    types = {str(e.detail["type"]) for e in planned.evaluations if e.kind == "corruption"}
    made = {
        package
        for name, packages in CORRUPTION_PACKAGES.items()
        for package in packages
        if any(name in type_ for type_ in types)
    }
    return sorted(named & {"pyautoattack", "torchattacks", "foolbox"} | made)
