"""What rows depend on, and so what run.json is to say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustgen import load_model, registry
from robustgen.classifiers.base import Classifier
from robustgen.config import Protocol
from robustgen.evaluation import load_data
from robustgen.pilot import Kernels, Profile
from robustgen.plan import plan
from robustgen.runspec import libraries, run_spec

PLAIN = Profile(stochastic=False, batch_dependent=False, kernels=Kernels(4), gpu_share=0.0)
(REFERENCE,) = registry.resolve("softmax-digits")


def spec(profile: Profile = PLAIN, model: Classifier | None = None, **changes: Any) -> dict[str, Any]:
    """run.json's specification of softmax-digits, or of a model in its place, under a changed protocol."""
    content = {
        "name": "p", "version": 1, "summary": "s", "n": 8, "chunk": 4, "data": {"digits": {}},
        "evaluations": [{"kind": "clean"}],
    }  # fmt: skip
    protocol, dataset = Protocol.model_validate(content | changes), load_data("digits", "test", None)
    model = load_model("softmax-digits") if model is None else model
    return run_spec(REFERENCE, model, protocol, dataset, plan(protocol, dataset), profile)


def test_rows_depend_on_seed_chunk_and_verdict_and_not_on_words() -> None:
    identity = spec()["identity"]
    assert spec(summary="other words", n=3)["identity"] == identity
    for change in ({"seed": 7}, {"chunk": 8}):
        assert spec(**change)["identity"] == identity | change
    assert spec(PLAIN._replace(stochastic=True))["identity"] == identity | {"draws": 32}


def test_rows_of_code_that_was_edited_are_those_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = spec()["identity"]
    monkeypatch.setattr("robustgen.runspec.row_code", lambda: "edited")
    assert spec()["identity"] == identity | {"code": "edited"}


def test_the_model_is_known_by_its_weights_as_they_are_in_memory() -> None:
    model = load_model("softmax-digits")
    said = spec(model=model)["model"]
    assert (said["name"], said["family"], said["num_classes"]) == ("softmax-digits", "softmax", 10)
    assert said["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert spec(model=model)["identity"]["model"] != said["fingerprint"] == spec()["identity"]["model"]


def test_versions_that_corruptions_are_made_with_are_a_part_of_the_identity() -> None:
    def made_with(*types: str) -> list[str]:
        corrupted = [SimpleNamespace(kind="corruption", detail={"type": type_}) for type_ in types]
        return libraries(SimpleNamespace(evaluations=corrupted))  # type: ignore[arg-type]

    assert made_with("fog", "gaussian_noise") == []
    assert made_with("fog", "imagenet-constants:jpeg_compression") == ["pillow"]
    assert {"imagecorruptions", "scikit-image"} < set(made_with("imagenet-c:fog"))
    assert "opencv-python" in made_with("imagenet-constants:frost")
    assert "opencv-python" not in made_with("frost")
