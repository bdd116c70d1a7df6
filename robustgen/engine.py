"""The way of the data: a protocol's evaluations become chunks, and chunks become rows in a store.

Each chunk is computed by a Worker, which is all that an executor needs to run somewhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from robustgen.classifiers import fingerprint_model, load_model
from robustgen.classifiers.base import Classifier, threads_for
from robustgen.config import Protocol, fingerprint
from robustgen.data import Dataset
from robustgen.environment import environment
from robustgen.errors import DiskFullError, UnsupportedError, UserError
from robustgen.executors import Executor, LocalExecutor
from robustgen.plan import Evaluation, Plan, load_data, plan
from robustgen.registry import ModelRef, ZooModel, load_card
from robustgen.store import Chunk, RunStore
from robustgen.worker import Worker

BATCH = 64


class Outcome(NamedTuple):
    """The runs that have rows, and what went wrong with which model."""

    runs: list[RunStore]
    failures: dict[str, str]


def evaluate(
    models: Iterable[ModelRef],
    protocol: Protocol,
    source: str,
    out: Path,
    *,
    n: int | None = None,
    root: Path | None = None,
    batch: int | None = None,
    device: str = "auto",
    executor: Executor | None = None,
    progress: Callable[[str, Chunk | None, int, int], None] = lambda *_: None,
) -> Outcome:
    """Run every model through a protocol on a data set; finished chunks are not computed again.

    ``source`` is a data set's name, ``imagefolder:PATH`` or an .npz; ``n`` takes the first n test
    samples; ``progress(model, chunk, done, all)`` is called as chunks finish. A model that fails is
    noted and the others go on. Raises UserError if none could be run.
    """
    dataset = load_data(source, "test", None, root)
    planned = plan(protocol, dataset, root)
    n = n or protocol.n
    outcome = Outcome([], {})
    errors: list[UserError] = []
    for reference in models:
        try:
            store, failed = _run_model(
                reference, protocol, dataset, planned, out, n=n, root=root, batch=batch, device=device,
                executor=executor or LocalExecutor(), progress=progress,
            )  # fmt: skip
        except DiskFullError:
            raise
        except UserError as error:
            outcome.failures[reference.name] = str(error)
            errors.append(error)
            continue
        outcome.runs.append(store)
        if failed:
            outcome.failures[store.model] = failed
    if not outcome.runs and errors:
        raise errors[0]
    return outcome


def _run_model(
    reference: ModelRef,
    protocol: Protocol,
    dataset: Dataset,
    planned: Plan,
    out: Path,
    *,
    n: int | None,
    root: Path | None,
    batch: int | None,
    device: str,
    executor: Executor,
    progress: Callable[[str, Chunk | None, int, int], None],
) -> tuple[RunStore, str]:
    chip = _device(device)
    model = load_model(reference, num_classes=len(dataset.class_names), input_shape=dataset.shape)
    if model.stochastic:
        raise UnsupportedError(
            f"{reference.name!r} is stochastic, and one draw must not decide a verdict",
            expected="a deterministic model, until verdicts of several draws are built",
            remedy="fix its noise: draw it once, with a seed of its own",
        )
    path = out / "runs" / reference.name
    kernels = _kernels(path, dataset, batch or min(BATCH, protocol.chunk), batch is not None, chip)
    torch.set_num_threads(kernels["threads"])
    spec = _spec(reference, model, protocol, dataset, planned, kernels)
    store = RunStore.open(path, spec, _environment(reference, root))
    finished = store.done()
    every = [chunk for e in planned.evaluations for chunk in chunks(e, finished, protocol.chunk, n)]
    worker = Worker(
        model, planned.evaluations, source=dataset.source, seed=protocol.seed,
        batch=kernels["batch"], device=chip, root=root,
    )  # fmt: skip
    failed = ""
    progress(reference.name, None, 0, len(every))
    for done, (chunk, result) in enumerate(executor.run(worker, every), start=1):
        if isinstance(result, Exception):
            message = str(result) if isinstance(result, UserError) else f"{type(result).__name__}: {result}"
            store.fail(chunk, message)
            failed = f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {message}"
        else:
            store.write(
                chunk,
                result.rows,
                tables=result.tables,
                adversarial=result.adversarial,
                seconds=result.seconds,
            )
        progress(reference.name, chunk, done, len(every))
    return store, failed


def chunks(evaluation: Evaluation, finished: set[Chunk], size: int, n: int | None) -> list[Chunk]:
    """What is left to do of an evaluation's first n samples, cut at multiples of the chunk size."""
    stop = min(n or evaluation.size, evaluation.size)
    covered = np.zeros(stop, dtype=bool)
    for chunk in finished:
        if chunk.evaluation == evaluation.name:
            covered[chunk.start : chunk.stop] = True
    left: list[Chunk] = []
    for index in np.flatnonzero(~covered).tolist():
        if left and left[-1].stop == index and index % size:
            left[-1] = left[-1]._replace(stop=index + 1)
        else:
            left.append(Chunk(evaluation.name, index, index + 1))
    return left


def _kernels(path: Path, dataset: Dataset, batch: int, asked: bool, device: torch.device) -> dict[str, Any]:
    """How the model is called; what a run began with is kept, since kernels are never switched midway."""
    kernels = {
        "batch": batch,
        "precision": "float32",
        "device": str(device),
        "threads": threads_for(dataset.shape),
    }
    if (path / "run.json").exists():
        begun = RunStore.read(path).spec["kernels"]
        kernels["threads"] = begun["threads"]
        kernels["batch"] = batch if asked else begun["batch"]
    return kernels


def _spec(
    reference: ModelRef, model: Classifier, protocol: Protocol, dataset: Dataset, planned: Plan,
    kernels: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What run.json says; its ``identity`` and the evaluations' descriptions are what rows depend on."""
    packages = environment()
    identity = {
        "model": fingerprint_weights(reference, model),
        "data": dataset.fingerprint,
        "seed": protocol.seed,
        "chunk": protocol.chunk,
        "kernels": kernels,
        "versions": {name: packages.get(name) for name in ("robustgen", "torch", "scipy", "pyautoattack")},
    }
    return {
        "identity": identity,
        "model": {
            "name": reference.name,
            "fingerprint": identity["model"],
            **_card_line(reference),
            "num_classes": model.num_classes,
            "input_shape": list(model.input_shape),
            "supports": sorted(model.supports),
            "density": model.density,
            "noise": repr(model.noise),
            "stochastic": model.stochastic,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "provenance": dataset.provenance,
            "class_names": list(dataset.class_names),
            "size": len(dataset),
            "shape": list(dataset.shape),
        },
        "protocol": protocol.model_dump(mode="json", exclude={"n"}),
        "evaluations": [evaluation.describe() for evaluation in planned.evaluations],
        "refused": planned.refused,
        "kernels": kernels,
    }


def fingerprint_weights(reference: ModelRef, model: Classifier) -> str:
    """A loaded model's identity: where its code is from, and everything that it has learned.

    The weights are hashed as they are in memory, since a user's file may load them from anywhere.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return fingerprint([fingerprint_model(reference), digest.hexdigest()])


def _environment(reference: ModelRef, root: Path | None) -> dict[str, str]:
    where = {"data_root": str(root.resolve())} if root else {}
    return environment() | {"reference": str(reference)} | where


def _card_line(reference: ModelRef) -> dict[str, str]:
    if not isinstance(reference, ZooModel):
        return {"family": "custom", "summary": "", "data": ""}
    card = load_card(reference.folder)
    return {"family": card.family, "summary": card.summary, "data": card.data}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            "no such device", where="--device", expected="auto, cpu, or cuda where there is one", got=name
        )
    if name == "cuda":  # float32 means float32, and the same bits twice
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return torch.device(name)
