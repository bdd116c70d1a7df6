"""A stored run's model and data as they were: for whoever asks the model again."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

import torch

from robustgen import data
from robustgen.classifiers import fingerprint_weights, load_model
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.errors import UserError
from robustgen.registry import ModelRef, code_of, resolve_one
from robustgen.store import RunStore


def load_run(store: RunStore, *, code: Collection[Path] = ()) -> tuple[FixedBatch, data.Dataset]:
    """The model of a run, called as it was then, and the run's data; UserError where either changed.

    ``code``: the Python files that may be run. A report may be anybody's, so that its word is not enough.
    """
    spec = store.spec
    reference = _reference(store, code)
    dataset = data.load(spec["data"]["source"], root=store.environment.get("data_root"))
    if dataset.fingerprint != spec["data"]["fingerprint"]:
        raise UserError(
            "the data are not those of the run", where=store.path,
            expected=spec["data"]["fingerprint"], got=dataset.fingerprint,
        )  # fmt: skip
    model = load_model(reference, class_names=dataset.class_names, input_shape=dataset.shape)
    if fingerprint_weights(reference, model) != spec["model"]["fingerprint"]:
        raise UserError(
            f"the model {store.model!r} is not the one of the run: it was changed since", where=store.path,
            expected=spec["model"]["fingerprint"], got=fingerprint_weights(reference, model),
        )  # fmt: skip
    torch.set_num_threads(spec["kernels"]["threads"])
    batched = FixedBatch(model, spec["kernels"]["batch"])
    batched.stochastic = spec["model"]["stochastic"]
    return batched, dataset


def _reference(store: RunStore, code: Collection[Path]) -> ModelRef:
    """What run.json says that the model is; a UserError where that would run a file that nobody named."""
    named = str(store.environment.get("reference"))
    found = resolve_one(named, where=store.path)
    file = code_of(found)
    if file is not None and file.resolve() not in {path.resolve() for path in code}:
        raise UserError(
            "this run is of a model with code of its own, and no code runs on a report's word alone",
            where=store.path,
            expected="its file on the command line",
            got=named,
            remedy=f"if you know that file: --code {shlex.quote(str(file))}",
        )
    return found
