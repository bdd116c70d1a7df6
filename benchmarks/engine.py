"""What the engine costs: time outside model calls as a share of a run, and the listing of a million chunks.

Model calls are forwards and gradients. The rest is told apart: the arithmetic of attacks and corruptions
between the calls, and the engine proper (loading, the pilot, slicing, verifying, rows, files).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import torch

from robustgen import engine, registry, worker
from robustgen.chunks import unfinished
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.evaluation import Evaluation
from robustgen.perturb import Identity
from robustgen.rowtable import row_schema
from robustgen.store import Chunk, RunStore


class Clock:
    """Time by kind, each second counted once: for the innermost block that it was spent in."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.kinds: list[str] = []
        self.mark = time.perf_counter()

    @contextmanager
    def block(self, kind: str) -> Iterator[None]:
        self._book()
        self.kinds.append(kind)
        try:
            yield
        finally:
            self._book()
            self.kinds.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self.kinds:
            self.spent[self.kinds[-1]] = self.spent.get(self.kinds[-1], 0.0) + now - self.mark
        self.mark = now

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.block(kind):
                return function(*args, **kwargs)

        return call


def overhead(models: list[str], data: str, protocol: str, n: int, root: Path | None) -> dict[str, Any]:
    """Run a protocol, and say where its time went."""
    clock = Clock()
    chosen = registry.load_protocol(protocol)

    @contextmanager
    def seeded(model: FixedBatch, purpose: str, *arguments: Any) -> Iterator[None]:
        with clock.block("search" if purpose == "search" else "engine"), real(model, purpose, *arguments):
            yield

    real = worker.seeded
    call, grad = FixedBatch._call, torch.autograd.grad
    with (
        tempfile.TemporaryDirectory() as out,
        mock.patch.object(FixedBatch, "_call", lambda *a, **k: clock.timed("model", call)(*a, **k)),
        mock.patch.object(torch.autograd, "grad", clock.timed("model", grad)),
        mock.patch.object(worker, "seeded", seeded),
        clock.block("engine"),
    ):
        references = registry.resolve_all(models, data)
        outcome = engine.evaluate(references, chosen, data, Path(out), n=n, root=root)
        chunks = sum(len(run.finished(e["name"])) for run in outcome.runs for e in run.spec["evaluations"])
    seconds = sum(clock.spent.values())
    shares = {kind: spent / seconds for kind, spent in clock.spent.items()}
    return {
        "models": models, "data": data, "protocol": protocol, "n": n, "chunks": chunks,
        "seconds": seconds, "model_share": shares["model"], "search_share": shares.get("search", 0.0),
        "engine_share": shares["engine"], "overhead": 1 - shares["model"], "threads": torch.get_num_threads(),
    }  # fmt: skip


def listing(chunks: int, stored: int) -> dict[str, Any]:
    """Plan that many chunks, and find that many finished ones in a folder."""
    evaluation = Evaluation("clean", "clean", "digits", "test", 64 * chunks, {}, perturbation=Identity())
    began = time.perf_counter()
    plan = unfinished([evaluation], {}, 64, None)
    assert sum(1 for _ in plan) == chunks
    planned = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        spec = {"identity": {}, "evaluations": [{"name": "clean"}], "model": {"name": "m"}}
        store = RunStore.open(Path(folder), spec, {})
        store.write(Chunk("clean", 0, 64), pa.Table.from_pylist([], row_schema(10)))
        for start in range(1, stored):
            chunk = Chunk("clean", 64 * start, 64 * start + 64)
            (Path(folder) / "samples" / "clean" / f"{chunk.stem}.parquet").touch()
        began = time.perf_counter()
        finished = store.finished("clean")
        assert len(finished) == stored
        rest = unfinished([evaluation], {"clean": finished}, 64, None)
        assert len(rest) == chunks - stored
        found = time.perf_counter() - began
    return {"chunks": chunks, "listed_s": planned, "stored": stored, "found_s": found}


def main() -> int:
    """Both figures; the exit code says whether they keep to their bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["softmax-cifar10"])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=1_000_000, help="of the plan that is listed")
    parser.add_argument("--stored", type=int, default=100_000, help="files that are made, to be found")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lists = listing(options.chunks, options.stored)
    run = overhead(options.models, options.data, options.protocol, options.n, options.data_root)
    if options.json:
        print(json.dumps({"listing": lists, "run": run}, indent=1))
    else:
        share = {kind: f"{100 * run[f'{kind}_share']:.1f} %" for kind in ("model", "search", "engine")}
        print(
            f"{lists['chunks']:,} chunks listed in {lists['listed_s']:.1f} s; "
            f"{lists['stored']:,} stored ones found in {lists['found_s']:.1f} s\n"
            f"{run['seconds']:.0f} s for {run['chunks']} chunks: {share['model']} in the model, "
            f"{share['search']} between its calls in attacks and corruptions, "
            f"{share['engine']} in the engine\n"
            f"overhead: {100 * run['overhead']:.1f} %"
        )
    return 0 if run["overhead"] <= 0.10 and lists["listed_s"] < 10 else 1


if __name__ == "__main__":
    sys.exit(main())
