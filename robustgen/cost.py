"""Estimates the cost of a run from a few pictures of each evaluation, and compares it with the true cost."""

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
from robustgen.job import ModelJob
from robustgen.pilot import Profile, best_time, margin_gradient, smaller_batches
from robustgen.store import Chunk
from robustgen.worker import Worker

FILE = "estimate.json"
MIN_PICTURES = 16
"""At least so many pictures of each evaluation are computed: an attack's cost differs from picture to
picture, and with few of them its last calls are half empty."""
WARM_UP_BELOW = 1.0
"""Seconds; a measurement that took less is repeated, since the first includes loading."""


@dataclass(frozen=True)
class Cost:
    """What one evaluation of ``n`` pictures takes in all: forwards, backwards and seconds of one worker.

    ``error``: the relative standard error of these, from the differences between pictures.
    """

    evaluation: str
    n: int
    forwards: float
    backwards: float
    seconds: float
    error: float


@dataclass(frozen=True)
class CostEstimate:
    """What a model's run takes, by evaluation; ``memory``: the peak of one worker in bytes."""

    model: str
    costs: list[Cost]
    memory: int

    def total(self, what: str) -> float:
        return float(sum(getattr(cost, what) for cost in self.costs))

    def bounds(self) -> tuple[float, float]:
        """95 % interval of the seconds; errors add up, since the same pictures are costly everywhere."""
        spread = 1.96 * sum(cost.seconds * cost.error for cost in self.costs)
        seconds = self.total("seconds")
        return max(0.0, seconds - spread), seconds + spread

    def describe(self) -> dict[str, Any]:
        """The estimate as estimate.json and summary.json have it."""
        low, high = self.bounds()
        totals = {what: self.total(what) for what in ("forwards", "backwards", "seconds")}
        return {
            **totals, "seconds_low": low, "seconds_high": high, "memory": self.memory,
            "evaluations": [asdict(cost) for cost in self.costs],
        }  # fmt: skip


def estimate_cost(job: ModelJob, profile: Profile, n: int | None) -> CostEstimate:
    """Compute a few pictures of each evaluation in this process and scale up to the first n.

    An eighth of the run, but at most a batch and at least ``MIN_PICTURES``. Nothing is stored.
    """
    batch = profile.kernels.batch
    torch.set_num_threads(profile.kernels.threads)
    model, planned, dataset = job.load()
    few = min(max(MIN_PICTURES, min(batch, (n or len(dataset)) // 8)), len(dataset))
    size = min(few, batch)
    sizes = smaller_batches(size) if profile.kernels.sizes else []
    kernels = profile.kernels._replace(batch=size, sizes=sizes)
    worker = Worker(
        model, planned.evaluations, source=job.source, seed=job.protocol.seed, kernels=kernels,
        root=job.root, stochastic=profile.stochastic,
    )  # fmt: skip
    full_batch = _full_batch_share(model, dataset.images, job.device, batch, size)
    costs = []
    for evaluation in planned.evaluations:
        pictures = min(few, evaluation.size)
        chunk = Chunk(evaluation.name, 0, pictures)
        output = worker(chunk)
        if output.seconds < WARM_UP_BELOW:
            output = worker(chunk)
        forwards, backwards = (np.asarray(output.rows[name]) for name in ("forwards", "backwards"))
        calls = forwards + 2 * backwards  # a backward pass takes about as long as two forwards
        error = float(calls.std() / max(calls.mean(), 1e-9) / pictures**0.5)
        total = min(n or evaluation.size, evaluation.size)
        costs.append(
            Cost(
                evaluation.name, total, float(forwards.mean()) * total, float(backwards.mean()) * total,
                output.seconds / pictures * total * full_batch, error,
            )
        )  # fmt: skip
    return CostEstimate(job.reference.name, costs, peak_memory(job.device))


def _full_batch_share(
    model: Classifier, images: Tensor, device: torch.device, batch: int, size: int
) -> float:
    """The time of one picture in a full batch as a share of its time in a batch of ``size``."""

    def seconds_of_one(length: int) -> float:
        x = images[torch.arange(length) % len(images)].to(device)
        return best_time(lambda: _gradient_or_logits(model, x), device) / length

    return seconds_of_one(batch) / seconds_of_one(size)


def _gradient_or_logits(model: Classifier, x: Tensor) -> None:
    try:
        margin_gradient(model, x)
    except RuntimeError:  # a model without gradients
        model.logits(x)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_estimates(out: Path, estimates: list[CostEstimate], n: int | None, protocol: str) -> None:
    """Write OUT/estimate.json, which the report of the same run reads."""
    write_json(out / FILE, {"n": n, "protocol": protocol, "models": by_model(estimates)})


def read_estimates(out: Path, n: int | None, protocol: str) -> dict[str, dict[str, Any]]:
    """What OUT/estimate.json says by model, if it is of the same protocol and n; else nothing."""
    if not (out / FILE).exists():
        return {}
    content = read_json(out / FILE)
    return content["models"] if (content["n"], content["protocol"]) == (n, protocol) else {}


def by_model(estimates: list[CostEstimate]) -> dict[str, dict[str, Any]]:
    """Estimates as JSON, by model."""
    return {estimate.model: estimate.describe() for estimate in estimates}


def estimate_lines(estimates: list[CostEstimate]) -> list[str]:
    """A line of text for each model, followed by its three most expensive evaluations."""
    lines = []
    for estimate in estimates:
        low, high = map(duration, estimate.bounds())
        lines.append(
            f"{estimate.model}: {duration(estimate.total('seconds'))} of one worker ({low} to {high}), "
            f"{estimate.total('forwards'):,.0f} forwards, {estimate.total('backwards'):,.0f} backwards, "
            f"{estimate.memory / 2**30:.1f} GB"
        )
        dearest = sorted(estimate.costs, key=lambda cost: -cost.seconds)[:3]
        lines += [
            f"  {cost.evaluation}: {duration(cost.seconds)}, {cost.forwards / cost.n:,.0f} forwards and "
            f"{cost.backwards / cost.n:,.0f} backwards a picture"
            for cost in dearest
        ]
    return lines


def comparison_lines(content: Mapping[str, Any]) -> list[str]:
    """The estimated cost beside the true one, a line for each model of a report that has an estimate.

    ``content``: what summary.json holds.
    """
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
    """Seconds as text in a fitting unit, such as ``1.5 min``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
