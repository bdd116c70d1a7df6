"""The two classifiers over a denoiser: what their accuracy costs, and how far their errors reach.

For the diffusion classifier, accuracy against denoiser calls: the full noise set at growing numbers of
levels, with the ELBO's weights and with uniform ones, and staged elimination beside the full set that
it stands for. Held against the zoo's bar: staged prediction with at most a quarter of the calls of the
smallest full set within a point of the best, and a paired loss of at most half a point to it.

For the score-based classifier, accuracy and bits per dimension as it is, with twice the steps, and with
8 probes. Bits per dimension are those of pictures with noise of its level, drawn once, in the usual
units of 256 grey levels: 8 - log2 p / d. They are not those of the digits, whose levels are discrete.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

from robustgen import data, load_model
from robustgen.classifiers.diffusion import DiffusionClassifier
from robustgen.classifiers.score import ScoreClassifier
from robustgen.draws import Draws
from robustgen.metrics.intervals import wilson

BATCH = 40  # pictures at a time: a call's activations stay in the processor's cache
LEVELS = (1, 2, 4, 8, 16, 32)


def accuracy(right: Tensor) -> dict[str, float]:
    """Accuracy in percent with its 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return {"accuracy": 100 * float(right.double().mean()), "ci_low": 100 * low, "ci_high": 100 * high}


def rebuilt(model: Any, **changes: Any) -> Any:
    """A model of another size over the same denoiser."""
    return type(model)(model.denoiser, **changes).eval().requires_grad_(False)


@torch.no_grad()
def diffusion(model: DiffusionClassifier, x: Tensor, y: Tensor, levels: tuple[int, ...]) -> dict[str, Any]:
    """The curve, and the bar. Smaller noise sets are the first levels of the largest."""
    same = {"low": model.low, "high": model.high, "evidence": model.evidence}
    largest = rebuilt(model, levels=max(levels), **same)
    terms = torch.cat([largest.terms(part) for part in x.split(BATCH)], 1)
    weights = {"elbo": torch.ones_like(largest.sigmas), "uniform": largest.sigmas**2}
    full, verdicts, staged_verdicts = [], {}, {}
    for name, weight in weights.items():
        for count in levels:
            weighted = (terms * weight[:, None, None])[:count].mean(0)
            right = weighted.argmin(1) == y
            calls = largest.calls_per_image // max(levels) * count
            full.append({"weights": name, "levels": count, "calls": calls, **accuracy(right)})
            if name == "elbo":
                verdicts[count] = right
    staged = []
    for count in (count for count in levels if count >= 4):
        smaller = rebuilt(model, levels=count, **same)
        found = [smaller.predict(part) for part in x.split(BATCH)]
        right = torch.cat([labels for labels, _ in found]) == y
        calls = torch.cat([calls for _, calls in found]).double()
        staged.append({
            "levels": count, "calls": float(calls.mean()), "most_calls": int(calls.max()), **accuracy(right),
            "lost": int((verdicts[count] & ~right).sum()), "won": int((right & ~verdicts[count]).sum()),
        })  # fmt: skip
        staged_verdicts[count] = right
    return {"full": full, "staged": staged, "bar": bar(full, staged, verdicts, staged_verdicts)}


def bar(
    full: list[dict], staged: list[dict], verdicts: dict[int, Tensor], staged_verdicts: dict[int, Tensor]
) -> dict[str, Any]:
    """Each staged run beside the smallest full run that is within a point of the best; the verdicts of both
    by their levels."""
    elbo = [run for run in full if run["weights"] == "elbo"]
    best = max(run["accuracy"] for run in elbo)
    smallest = next(run for run in elbo if run["accuracy"] >= best - 1)
    reference = verdicts[smallest["levels"]].double()
    runs = [
        {
            "levels": run["levels"], "share_of_calls": run["calls"] / smallest["calls"],
            "paired_loss": 100 * float((reference - staged_verdicts[run["levels"]].double()).mean()),
        }
        for run in staged
    ]  # fmt: skip
    return {"best": best, "smallest_full": smallest, "staged": runs}


@torch.no_grad()
def score(model: ScoreClassifier, x: Tensor, y: Tensor, n_more: int) -> list[dict[str, Any]]:
    """Accuracy and bits per dimension; the dearer variants, and this one beside them, on n_more pictures."""
    steps, _, probes = model.probe_set.shape[:3]
    sigma = model.test_sigma
    assert sigma is not None
    noisy = x + sigma * Draws(0, "benchmark", torch.arange(len(x))).normal(*x.shape[1:]).float()
    dims, found = x[0].numel(), []
    for more, changes, n in (
        ({}, {}, len(x)),
        ({}, {}, n_more),
        ({"steps": 2 * steps}, {"steps": 2 * steps}, n_more),
        ({"probes": 8}, {"probes": 8}, n_more),
    ):
        other = rebuilt(model, **{"steps": steps, "probes": probes, "sigma": sigma} | changes)
        joint = torch.cat([other.log_joint(part) for part in x[:n].split(BATCH)])
        run = {"steps": steps, "probes": probes, **more, "n": n, "calls": other.calls_per_image}
        run |= accuracy(joint.argmax(1) == y[:n])
        bits = {"clean": 8 - joint.logsumexp(1) / (dims * math.log(2))}
        if n == n_more:
            log_p = torch.cat([other.log_prob(part) for part in noisy[:n].split(BATCH)])
            bits["noisy"] = 8 - log_p / (dims * math.log(2))
        for name, values in bits.items():
            run |= {
                f"bits_{name}": float(values.mean()),
                f"bits_{name}_se": float(values.std()) / math.sqrt(n),
            }
        found.append(run)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a name of the zoo (default: diffusion-DATA and score-DATA)")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="sizes of the full noise set")
    parser.add_argument("--split", default="test", choices=["test", "calibration"])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--n-more", type=int, default=100, help="pictures for the dearer flows")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    part = data.load(arguments.data, arguments.split).slice(0, arguments.n)
    x, y = part.images, part.labels
    result: dict[str, Any] = {"data": arguments.data, "split": arguments.split, "n": len(x)}
    began = time.perf_counter()
    both = (f"diffusion-{arguments.data}", f"score-{arguments.data}")
    for name in (arguments.model,) if arguments.model else both:
        model = load_model(name)
        if isinstance(model, DiffusionClassifier):
            result["diffusion"] = diffusion(model, x, y, tuple(arguments.levels))
        elif isinstance(model, ScoreClassifier):
            result["score"] = score(model, x, y, arguments.n_more)
        else:
            parser.error(f"{name} is neither a diffusion classifier nor a score-based one")
    result["seconds"] = round(time.perf_counter() - began, 1)
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    return 0


def table(result: dict[str, Any]) -> str:
    """The same as lines of text."""
    lines = [f"{result['data']}, {result['split']} split, n = {result['n']}"]
    for run in result.get("diffusion", {}).get("full", []):
        lines.append(
            f"full   {run['weights']:7} {run['levels']:3} levels {run['calls']:6.1f} calls  {_range(run)}"
        )
    for run in result.get("diffusion", {}).get("staged", []):
        lines.append(
            f"staged elbo    {run['levels']:3} levels {run['calls']:6.1f} calls  {_range(run)}"
            f"  lost {run['lost']}, won {run['won']} of the full set's"
        )
    if "diffusion" in result:
        bar = result["diffusion"]["bar"]
        least = bar["smallest_full"]
        lines.append(
            f"smallest full set within a point of the best: {least['levels']} levels, {least['calls']} calls"
        )
        for run in bar["staged"]:
            lines.append(
                f"  staged over {run['levels']:2} levels: {run['share_of_calls']:.2f} of its calls, "
                f"paired loss {run['paired_loss']:+.2f} points"
            )
    for run in result.get("score", []):
        noisy = (
            f", {run['bits_noisy']:.3f} +- {run['bits_noisy_se']:.3f} noisy" if "bits_noisy" in run else ""
        )
        lines.append(
            f"score  {run['steps']:2} steps {run['probes']} probes {run['calls']} calls  {_range(run)}"
            f" (n = {run['n']})  bits/dim {run['bits_clean']:.3f} +- {run['bits_clean_se']:.3f} clean{noisy}"
        )
    return "\n".join([*lines, f"{result['seconds']} s"])


def _range(run: dict[str, float]) -> str:
    return f"{run['accuracy']:5.1f} % [{run['ci_low']:.1f}, {run['ci_high']:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
