"""Chunks on the machines of a Ray cluster: the one of RAY_ADDRESS, one that runs here, or a new one.

An actor is a worker: it loads model and data once, computes chunk after chunk, and stores each itself;
what travels back is a count. Where a worker dies, with its process or its machine, its chunk is computed
by another; what it had finished is in the store.
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

LIVES = 3
"""So many workers may die over a chunk, one after the other, before it counts as failed."""


class RayExecutor:
    """As many workers as the cluster has room for: each takes as many processors as the run has threads,
    and the share of a GPU that its model needs."""

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
        answer = remote.remote(_surroundings(), function, arguments)
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
                    if deaths[chunk] < LIVES:
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
        """What ``get`` raises where the worker died."""
        errors = self.ray.exceptions
        return errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError

    def get(self, answer: Any) -> Any:
        """What a worker returned; a UserError of the worker's is raised here, as is its death."""
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None


class _Crew:
    """The workers of one run, and what each is busy with: a chunk, or None while it loads its model."""

    def __init__(self, executor: RayExecutor, job: ModelJob, store: RunStore) -> None:
        self.executor = executor
        self.needs = {"num_cpus": store.spec["kernels"]["threads"], "num_gpus": job.gpu_share}
        self.actor = executor.ray.remote(**self.needs)(_Actor)
        self.sent = executor.ray.put((_surroundings(), job, store))
        self.busy: dict[Any, tuple[Any, Chunk | None]] = {}

    def hire(self, wanted: int) -> None:
        """Start workers until there are as many as are wanted, or as the cluster has room for."""
        room = self.executor.ray.cluster_resources()
        fit = min(int(room.get(name, 0) / self.needs[key] + 1e-6)
                  for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if self.needs[key])  # fmt: skip
        while len(self.busy) < min(wanted, max(1, fit)):
            worker = self.actor.remote(self.sent)
            self.busy[worker.begin.remote()] = worker, None

    def ask(self, worker: Any, chunk: Chunk) -> None:
        self.busy[worker.compute.remote(chunk)] = worker, chunk

    def next(self) -> tuple[Any, Chunk | None, Any]:
        """Wait for the next of them: which, what it was busy with, and what came of that (None: it died)."""
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
        surroundings, job, store = self.sent
        _settle(surroundings)
        self.compute_chunk = job.start_worker(store)
        return True

    def compute(self, chunk: Chunk) -> Result:
        return self.compute_chunk(chunk)


def _call(surroundings: dict[str, str], function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    _settle(surroundings)
    return function(*arguments)


def _surroundings() -> dict[str, str]:
    """By what models and data are looked up."""
    return {"folder": str(Path.cwd()), "data": os.environ.get("ROBUSTGEN_DATA", "")}


def _settle(surroundings: dict[str, str]) -> None:
    if Path(surroundings["folder"]).is_dir():
        os.chdir(surroundings["folder"])
    if surroundings["data"]:
        os.environ["ROBUSTGEN_DATA"] = surroundings["data"]


def _given_up(chunk: Chunk | None) -> Failed:
    why = f"{LIVES} workers died of it, one after the other"
    if chunk is None:
        raise UserError(
            "the workers die while they load the model",
            got=why,
            remedy="give them more memory, or fewer of them",
        )
    return Failed(f"{why}: out of memory, or killed")
