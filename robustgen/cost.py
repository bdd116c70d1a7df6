"""What a run will take, from a few pictures of each evaluation; and beside it, afterwards, what it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.disk import read_json, write_json
from robustgen.pilot import gradient, seconds, smaller_batches
from robustgen.store import Chunk
from robustgen.work import Trial, Work
from robustgen.worker import Worker

FILE = "estimate.json"
PICTURES = 16
"""So many pictures of each evaluation are computed at least, an eighth of a run or a batch at most: an
attack's cost differs from picture to picture, and few of them leave its last calls half empty."""
SHORT = 1.0
"""Seconds; a measurement that took less is made twice, since the first loads what the second finds."""


@dataclass(frozen=True)
class Cost:
    """What one evaluation takes: forwards, backwards and seconds of one worker, over all its ``n`` pictures;
    ``error`` is the standard error of the three as a share, by the differences between pictures."""

    evaluation: str
    n: int
    forwards: float
    backwards: float
    seconds: float
    error: float


@dataclass(frozen=True)
class CostEstimate:
    """What a model's run takes: its evaluations, and the most memory in bytes of a worker at work."""

    model: str
    costs: list[Cost]
    memory: int

    def total(self, what: str) -> float:
        return float(sum(getattr(cost, what) for cost in self.costs))

    def bounds(self) -> tuple[float, float]:
        """95 % interval of the seconds; the same pictures are dear everywhere, so errors add up."""
        spread = 1.96 * sum(cost.seconds * cost.error for cost in self.costs)
        seconds = self.total("seconds")
        return max(0.0, seconds - spread), seconds + spread

    def describe(self) -> dict[str, Any]:
        """As it stands in estimate.json and summary.json."""
        low, high = self.bounds()
        totals = {what: self.total(what) for what in ("forwards", "backwards", "seconds")}
        return {
            **totals, "seconds_low": low, "seconds_high": high, "memory": self.memory,
            "evaluations": [asdict(cost) for cost in self.costs],
        }  # fmt: skip


def measure(work: Work, trial: Trial, n: int | None) -> CostEstimate:
    """Compute a few pictures of each evaluation, here, and scale up to the first n; nothing is stored."""
    batch = trial.kernels.batch
    torch.set_num_threads(trial.kernels.threads)
    model, planned, dataset = work.load()
    few = min(max(PICTURES, min(batch, (n or len(dataset)) // 8)), len(dataset))
    size = min(few, batch)
    smaller = trial.kernels._replace(batch=size, sizes=smaller_batches(size) if trial.kernels.sizes else [])
    worker = Worker(
        model, planned.evaluations, source=work.source, seed=work.protocol.seed, kernels=smaller,
        root=work.root, stochastic=trial.stochastic,
    )  # fmt: skip
    gain = _gain(model, dataset.images, work.device, batch, size)
    costs = []
    for evaluation in planned.evaluations:
        pictures = min(few, evaluation.size)
        chunk = Chunk(evaluation.name, 0, pictures)
        reading = worker(chunk)
        if reading.seconds < SHORT:
            reading = worker(chunk)
        forwards, backwards = (np.asarray(reading.rows[name]) for name in ("forwards", "backwards"))
        calls = forwards + 2 * backwards  # a backward pass takes about as long as two forwards
        error = float(calls.std() / max(calls.mean(), 1e-9) / pictures**0.5)
        total = min(n or evaluation.size, evaluation.size)
        costs.append(
            Cost(
                evaluation.name, total, float(forwards.mean()) * total, float(backwards.mean()) * total,
                reading.seconds / pictures * total * gain, error,
            )
        )  # fmt: skip
    return CostEstimate(work.reference.name, costs, memory(work.device))


def _gain(model: Classifier, images: Tensor, device: torch.device, batch: int, size: int) -> float:
    """What a picture takes in a full batch, as a share of what it takes in one of ``size``."""

    def seconds_of_one(length: int) -> float:
        x = images[torch.arange(length) % len(images)].to(device)
        return seconds(lambda: _call(model, x), device) / length

    return seconds_of_one(batch) / seconds_of_one(size)


def _call(model: Classifier, x: Tensor) -> None:
    try:
        gradient(model, x)
    except RuntimeError:  # a model without gradients is asked for answers alone
        model.logits(x)


def memory(device: torch.device) -> int:
    """The most memory that this process has held: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write(out: Path, estimates: list[CostEstimate], n: int | None, protocol: str) -> None:
    """Keep estimates beside the report that they are of."""
    write_json(out / FILE, {"n": n, "protocol": protocol, "models": described(estimates)})


def described(estimates: list[CostEstimate]) -> dict[str, dict[str, Any]]:
    """Estimates for machines, by model."""
    return {estimate.model: estimate.describe() for estimate in estimates}


def lines(estimates: list[CostEstimate]) -> list[str]:
    """Estimates in words, a line a model, and its three dearest evaluations below."""
    found = []
    for estimate in estimates:
        low, high = map(duration, estimate.bounds())
        found.append(
            f"{estimate.model}: {duration(estimate.total('seconds'))} of one worker ({low} to {high}), "
            f"{estimate.total('forwards'):,.0f} forwards, {estimate.total('backwards'):,.0f} backwards, "
            f"{estimate.memory / 2**30:.1f} GB"
        )
        dearest = sorted(estimate.costs, key=lambda cost: -cost.seconds)[:3]
        found += [
            f"  {cost.evaluation}: {duration(cost.seconds)}, {cost.forwards / cost.n:,.0f} forwards and "
            f"{cost.backwards / cost.n:,.0f} backwards a picture"
            for cost in dearest
        ]
    return found


def written(out: Path, n: int | None, protocol: str) -> dict[str, dict[str, Any]]:
    """What was estimated in this folder for so many pictures of a protocol, by model."""
    if not (out / FILE).exists():
        return {}
    content = read_json(out / FILE)
    return content["models"] if (content["n"], content["protocol"]) == (n, protocol) else {}


def beside(content: Mapping[str, Any]) -> list[str]:
    """Where a report (what summary.json holds) was estimated before: a line a model with both."""
    lines = []
    for model in content["models"]:
        if (guess := model.get("estimate")) is None:
            continue
        made = {what: sum(c[what] * c["n"] for c in model["costs"]) for what in ("forwards", "backwards")}
        seconds = sum(cost["seconds"] for cost in model["costs"])
        low, high = duration(guess["seconds_low"]), duration(guess["seconds_high"])
        lines.append(
            f"{model['name']}: {duration(guess['seconds'])} were estimated ({low} to {high}), "
            f"{duration(seconds)} taken; forwards {guess['forwards']:,.0f} and {made['forwards']:,.0f}, "
            f"backwards {guess['backwards']:,.0f} and {made['backwards']:,.0f}"
        )
    return lines


def duration(seconds: float) -> str:
    """In words, to two digits or so."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
