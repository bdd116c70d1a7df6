"""Attacks that were not used while ours were written, on what joint-adaptive leaves standing.

    python benchmarks/outsiders.py MODEL [--data NAME] [--n N] [--norm linf|l2] [--eps EPS] [--json]

FMN and DDN are adv-lib's, BB (Brendel and Bethge) is foolbox's, each with the steps that its paper
takes for its strongest results; BB needs numba, which is not in the lock: `pip install numba`. They
look for the nearest adversarial picture; a sample is broken
where that lies in the ball and the model itself, in float32, takes it for something else. On digits
the test split's 400 pictures are followed by those of the calibration split.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import foolbox
import torch
from adv_lib.attacks import ddn, fmn
from splits import first
from torch import Tensor

from robustgen import load_model
from robustgen.attacks.joint import JointAdaptive
from robustgen.classifiers.base import Classifier, FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.draws import Draws
from robustgen.metrics.intervals import wilson
from robustgen.perturb import verify
from robustgen.threat import ThreatModel
from robustgen.types import Norm

BATCH = 128
STEPS = 1000  # of FMN, DDN and BB: Pintor et al. 2021, Rony et al. 2019, Brendel et al. 2019
Find = Callable[[Tensor, Tensor], Tensor]


def outsiders(model: Classifier, norm: Norm) -> dict[str, Find]:
    """The attacks of a norm: pictures and labels to the nearest adversarial pictures that they find."""
    order = {"linf": float("inf"), "l2": 2.0}[norm]
    kind = {
        "linf": foolbox.attacks.LinfinityBrendelBethgeAttack,
        "l2": foolbox.attacks.L2BrendelBethgeAttack,
    }[norm]
    found: dict[str, Find] = {"fmn": lambda x, y: fmn(model, x, y, norm=order, steps=STEPS)}
    if norm == "l2":
        found["ddn"] = lambda x, y: ddn(model, x, y, steps=STEPS, levels=None)

    def brendel_bethge(x: Tensor, y: Tensor) -> Tensor:
        net = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        images = kind(steps=STEPS).run(net, x, foolbox.criteria.Misclassification(y))
        return torch.as_tensor(images)

    if importlib.util.find_spec("numba") is None:
        say("bb is left out: it needs numba")
        return found
    return found | {"bb": brendel_bethge}


def leftover(model: Classifier, threat: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
    """Which samples joint-adaptive leaves standing, (n,)."""
    batched = FixedBatch(model, BATCH, quick=quick_copy(model, x[:8]), sizes=range(1, BATCH + 1))
    batched.begin(len(x))
    images = JointAdaptive(threat)(batched, x, y, Draws(0, "outsiders", torch.arange(len(x)))).images
    return right(model, verify(threat, x, images).images, y)


@torch.no_grad()
def right(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Whether the model is right, (n,)."""
    return torch.cat([model.logits(part) for part in x.split(BATCH)]).argmax(1) == y


def measure(name: str, source: str, n: int, norm: Norm, eps: float | None) -> dict[str, object]:
    """How many survivors each attack breaks, and how many any of them."""
    model = load_model(name, data=source).eval().requires_grad_(False)
    defaults = {"digits": {"linf": 0.15, "l2": 0.6}, "cifar10": {"linf": 8 / 255, "l2": 0.5}}
    threat = ThreatModel(norm, eps or defaults[source][norm])
    x, y = first(source, n)
    began = time.perf_counter()
    stands = leftover(model, threat, x, y).nonzero().squeeze(1)
    result: dict[str, object] = {
        "model": name, "norm": norm, "eps": threat.eps, "n": len(x), "standing": len(stands),
        "seconds": {"joint-adaptive": time.perf_counter() - began},
    }  # fmt: skip
    say(f"{name} {threat.slug}: joint-adaptive leaves {len(stands)} of {len(x)}")
    if not len(stands):
        return result | {"broken": 0, "share": 0.0, "upper_bound": 1.0}
    broken = torch.zeros(len(stands), dtype=torch.bool)
    for attack, find in outsiders(model, norm).items():
        began = time.perf_counter()
        images = torch.cat(
            [find(a, b) for a, b in zip(x[stands].split(BATCH), y[stands].split(BATCH), strict=True)]
        ).nan_to_num()
        inside = threat.contains(x[stands], images)
        wrong = ~right(model, images, y[stands]) & inside
        broken |= wrong
        result["seconds"][attack] = time.perf_counter() - began  # type: ignore[index]
        result[attack] = int(wrong.sum())
        say(f"  {attack}: breaks {int(wrong.sum())} of {len(stands)}")
    k, m = int(broken.sum()), len(stands)
    return result | {"broken": k, "share": k / m, "upper_bound": wilson(k, m).high}


def say(line: str) -> None:
    """Progress, away from the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Print the figures, as a line or as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--eps", type=float)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    warnings.filterwarnings("ignore", module="foolbox")
    result = measure(a.model, a.data, a.n, a.norm, a.eps)
    result["versions"] = {package: version(package) for package in ("torch", "adv-lib", "foolbox")}
    if a.json:
        print(json.dumps(result, indent=2))
        return 0
    print(
        f"{a.model} {result['norm']} {result['eps']:.4g}: {result['broken']} of {result['standing']} "
        f"survivors broken ({result['share']:.2%}, at most {result['upper_bound']:.2%})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
