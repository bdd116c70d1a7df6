"""PGD of torchattacks and of foolbox beside ours: same net, pictures, steps and step size, one random
start, the cross-entropy, in one process.

The others get batches of 64, as their users write the loop; ours gets every picture at once, calls a
quick copy of the net in batches of 64, with what the pilot of ``robustgen report`` finds out, and fills
the places of pictures that are broken with others.
Each runs several times in turn and its quickest time counts. A ratio is their seconds by ours.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import foolbox
import torch
import torchattacks
from torch import Tensor

from robustgen import data, load_model
from robustgen.attacks.pgd import PGD
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.draws import Draws
from robustgen.metrics.intervals import wilson
from robustgen.perturb import enforce_budget
from robustgen.pilot import choose_kernels
from robustgen.threat import ThreatModel

BATCH = 64
Find = Callable[[Tensor, Tensor], Tensor]


def batches(find: Find) -> Find:
    """The same, a batch at a time."""

    def whole(x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
        return torch.cat([find(a, b) for a, b in pairs])

    return whole


def ours(model: Classifier, threat: ThreatModel, steps: int, example: Tensor) -> Find:
    kernels = choose_kernels(model, example, "auto")
    batched = FixedBatch(
        model, BATCH, quick=quick_copy(model, example[:8]), sizes=kernels.sizes,
        bfloat16_gradients=kernels.precision == "bf16",
    )  # fmt: skip
    attack = PGD(threat, steps=steps, restarts=1, loss="ce")

    def find(x: Tensor, y: Tensor) -> Tensor:
        batched.begin(len(x))
        return attack(batched, x, y, Draws(0, "benchmark", torch.arange(len(x)))).images

    return find


def theirs(model: Classifier, threat: ThreatModel, steps: int) -> dict[str, Find]:
    outside = torchattacks.PGD(model, eps=threat.eps, alpha=2.5 / steps * threat.eps, steps=steps)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps)
    net = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return {
        "torchattacks": batches(outside),
        "foolbox": batches(lambda x, y: attack(net, x, y, epsilons=threat.eps)[1]),
    }


def measure(name: str, source: str, n: int, steps: int, eps: float, repeats: int) -> dict[str, object]:
    """Robust accuracy and seconds of each, and the ratios of the seconds."""
    model = load_model(name).eval().requires_grad_(False)
    pictures = data.load(source).slice(0, n)
    x, y = pictures.images, pictures.labels
    threat = ThreatModel("linf", eps)
    finds = {"ours": ours(model, threat, steps, x[:BATCH]), **theirs(model, threat, steps)}
    torch.manual_seed(0)
    seconds: dict[str, list[float]] = {key: [] for key in finds}
    accuracy: dict[str, float] = {}
    for find in finds.values():
        find(x[:BATCH], y[:BATCH])  # kernels choose themselves on the first call
    for _ in range(repeats):
        for key, find in finds.items():
            began = time.perf_counter()
            found = find(x, y)
            seconds[key].append(time.perf_counter() - began)
            images = enforce_budget(threat, x, found).images
            with torch.no_grad():
                right = torch.cat([model.logits(part) for part in images.split(BATCH)]).argmax(1) == y
            accuracy.setdefault(key, float(right.float().mean()))
    result: dict[str, object] = {
        key: {
            "robust_accuracy": accuracy[key],
            "interval": list(wilson(round(accuracy[key] * len(x)), len(x))),
            "seconds": min(seconds[key]),
        }
        for key in finds
    }
    return result | {f"ratio_{key}": min(seconds[key]) / min(seconds["ours"]) for key in list(finds)[1:]}


def main() -> int:
    """Print the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="pgd-at-cifar10")
    parser.add_argument("--data", help="default: the last part of the model's name")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eps", type=float, help="default: 0.15 on digits, 8/255 elsewhere")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    a.data = a.data or a.model.rpartition("-")[2]
    a.eps = a.eps or (0.15 if a.data == "digits" else 8 / 255)
    result = measure(a.model, a.data, a.n, a.steps, a.eps, a.repeats)
    result["setting"] = vars(a) | {
        "processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "torchattacks", "foolbox")},
    }  # fmt: skip
    if a.json:
        print(json.dumps(result, indent=2))
        return 0
    for key in ("ours", "torchattacks", "foolbox"):
        row = result[key]
        assert isinstance(row, dict)
        low, high = row["interval"]
        print(
            f"{key:<13} robust accuracy {row['robust_accuracy']:.4f} [{low:.4f}, {high:.4f}] "
            f"in {row['seconds']:.2f} s"
        )
    print(f"ours is {result['ratio_torchattacks']:.2f} and {result['ratio_foolbox']:.2f} times as quick")
    return 0


if __name__ == "__main__":
    sys.exit(main())
