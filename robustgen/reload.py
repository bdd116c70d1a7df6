"""Loads the model and the data of a stored run again, and checks that neither changed since."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

import torch

from robustgen import data
from robustgen.classifiers import fingerprint_weights, load_model
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.errors import UserError
from robustgen.registry import ModelRef, resolve_one, user_code
from robustgen.store import RunStore, undo_change


def reload_run(store: RunStore, *, code: Collection[Path] = ()) -> tuple[FixedBatch, data.Dataset]:
    """The model of a run, called with the run's kernels, and its data. Raises UserError if either changed.

    ``code``: Python files that may be run. A report may come from anybody, so what it names is not enough.
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
            remedy=f"{undo_change(reference)}, or report it anew in another --out",
        )  # fmt: skip
    torch.set_num_threads(spec["kernels"]["threads"])
    batched = FixedBatch(model, spec["kernels"]["batch"])
    batched.stochastic = spec["model"]["stochastic"]
    return batched, dataset


def _reference(store: RunStore, code: Collection[Path]) -> ModelRef:
    """The model that run.json names. Raises UserError if that would run a file that is not in ``code``."""
    if missing := [path for path in code if not path.is_file()]:
        raise UserError(
            "there is no such Python file", where="--code", got=missing[0], remedy="check the path"
        )
    named = str(store.environment.get("reference"))
    found = resolve_one(named, where=store.path)
    file = user_code(found)
    if file is not None and file.resolve() not in {path.resolve() for path in code}:
        raise UserError(
            "the model of this run is defined in a Python file, which runs only if you name it",
            where=store.path,
            expected="the file given with --code",
            got=named,
            remedy=f"if you trust that file: --code {shlex.quote(str(file))}",
        )
    return found
