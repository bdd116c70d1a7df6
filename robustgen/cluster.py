"""Computes chunks on a Ray cluster: that of RAY_ADDRESS, one that runs on this machine, or a new one.

Each worker is an actor: it loads model and data once, computes one chunk after the other and stores each
itself; only counts are sent back. If a worker dies, with its process or machine, another computes its chunk;
what it had finished is in the store.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from robustgen.chunks import Chunks
from robustgen.errors import UserError, describe_error, missing_package
from robustgen.job import Failed, ModelJob, Result
from robustgen.store import Chunk, RunStore

T = TypeVar("T")

MAX_DEATHS = 3
"""A chunk counts as failed after so many workers died while computing it."""


class RayExecutor:
    """Runs as many workers as the cluster has room for.

    Each takes as many processors as the run has threads, and the share of a GPU that its model needs.
    """

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise missing_package("ray", "ray", "--executor ray") from None
        self.ray: Any = ray
        if ray.is_initialized():
            return
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(
                "there is no Ray cluster at this address",
                where="RAY_ADDRESS",
                expected="the address of a running cluster, or nothing for one on this machine",
                got=describe_error(error),
            ) from None

    def has_gpu(self) -> bool:
        return bool(self.ray.cluster_resources().get("GPU"))

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        if not self.has_gpu():
            return function(*arguments)
        remote = self.ray.remote(num_gpus=1)(_call)
        answer = remote.remote(_lookup_context(), function, arguments)
        try:
            return self.get(answer)
        except self.deaths as error:
            raise UserError(
                "the worker that was to try the model died", where="the cluster", got=type(error).__name__,
                remedy="see to that machine's memory, or choose a smaller --batch",
            ) from None  # fmt: skip

    def run(self, job: ModelJob, store: RunStore, chunks: Chunks) -> Iterator[tuple[Chunk, Result]]:
        crew = _Crew(self, job, store)
        queue: Iterator[Chunk] = iter(chunks)
        left, deaths = len(chunks), Counter[Chunk | None]()
        try:
            while left:
                crew.hire(left)
                worker, chunk, result = crew.next()
                if result is None:
                    deaths[chunk] += 1
                    if deaths[chunk] < MAX_DEATHS:
                        queue = queue if chunk is None else chain([chunk], queue)
                        continue
                    result = _given_up(chunk)
                elif (following := next(queue, None)) is not None:
                    crew.ask(worker, following)
                else:
                    crew.dismiss(worker)
                if chunk is None:
                    deaths[None] = 0
                else:
                    left -= 1
                    yield chunk, result
        finally:
            crew.dismiss(*crew.workers())

    @property
    def deaths(self) -> tuple[type[Exception], ...]:
        """What ``get`` raises if the worker died."""
        errors = self.ray.exceptions
        return errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError

    def get(self, answer: Any) -> Any:
        """A worker's answer. Raises its UserError, or one of ``deaths`` if it died."""
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None


class _Crew:
    """The workers of one run, and the chunk that each is computing, None while it loads its model."""

    def __init__(self, executor: RayExecutor, job: ModelJob, store: RunStore) -> None:
        self.executor = executor
        self.needs = {"num_cpus": store.spec["kernels"]["threads"], "num_gpus": job.gpu_share}
        self.actor = executor.ray.remote(**self.needs)(_Actor)
        self.sent = executor.ray.put((_lookup_context(), job, store))
        self.busy: dict[Any, tuple[Any, Chunk | None]] = {}

    def hire(self, wanted: int) -> None:
        """Start workers until there are ``wanted`` many, or the cluster is full."""
        room = self.executor.ray.cluster_resources()
        fit = min(int(room.get(name, 0) / self.needs[key] + 1e-6)
                  for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if self.needs[key])  # fmt: skip
        while len(self.busy) < min(wanted, max(1, fit)):
            worker = self.actor.remote(self.sent)
            self.busy[worker.begin.remote()] = worker, None

    def ask(self, worker: Any, chunk: Chunk) -> None:
        self.busy[worker.compute.remote(chunk)] = worker, chunk

    def next(self) -> tuple[Any, Chunk | None, Any]:
        """Wait for a worker to finish: the worker, its chunk, and the result (None if it died)."""
        (answer, *_), _ = self.executor.ray.wait(list(self.busy), num_returns=1)
        worker, chunk = self.busy.pop(answer)
        try:
            return worker, chunk, self.executor.get(answer)
        except self.executor.deaths:
            return worker, chunk, None

    def workers(self) -> list[Any]:
        return [worker for worker, _ in self.busy.values()]

    def dismiss(self, *workers: Any) -> None:
        for worker in workers:
            self.executor.ray.kill(worker)


class _Actor:
    """A worker in a process of its own, on any machine of the cluster."""

    def __init__(self, sent: tuple[dict[str, str], ModelJob, RunStore]) -> None:
        self.sent = sent

    def begin(self) -> bool:
        context, job, store = self.sent
        _apply_context(context)
        self.compute_chunk = job.start_worker(store)
        return True

    def compute(self, chunk: Chunk) -> Result:
        return self.compute_chunk(chunk)


def _call(context: dict[str, str], function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    _apply_context(context)
    return function(*arguments)


def _lookup_context() -> dict[str, str]:
    """What decides where models and data are found: the working directory and ROBUSTGEN_DATA."""
    return {"folder": str(Path.cwd()), "data": os.environ.get("ROBUSTGEN_DATA", "")}


def _apply_context(context: dict[str, str]) -> None:
    if Path(context["folder"]).is_dir():
        os.chdir(context["folder"])
    if context["data"]:
        os.environ["ROBUSTGEN_DATA"] = context["data"]


def _given_up(chunk: Chunk | None) -> Failed:
    why = f"{MAX_DEATHS} workers died of it, one after the other"
    if chunk is None:
        raise UserError(
            "the workers die while they load the model",
            got=why,
            remedy="give them more memory, or fewer of them",
        )
    return Failed(f"{why}: out of memory, or killed")
