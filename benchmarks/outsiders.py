"""Attacks that were not used while ours were written, on what joint-adaptive leaves standing.

    python benchmarks/outsiders.py MODEL [--data NAME] [--n N] [--norm linf|l2] [--eps EPS]
        [--threads T] [--json]

FMN and DDN are adv-lib's, BB (Brendel and Bethge) is foolbox's, each with the steps that its paper
takes for its strongest results; BB needs numba, which is not in the lock: `pip install numba`. It begins
at noise, or where the net takes that for the class, at another survivor. They look for the nearest
adversarial picture; a sample is broken where that lies in the ball and the model itself, in float32, takes
it for something else. On digits the test split's 400 pictures are followed by those of the calibration
split. What is found of each 128 pictures is kept in the user's cache folder, so a run that was cut off goes
on where it was, and seconds are those of the pictures' first run.
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
from typing import Any

import foolbox
import torch
from adv_lib.attacks import ddn, fmn
from kept import kept
from splits import first
from torch import Tensor

from robustgen import load_model
from robustgen.attacks.joint import JointAdaptive
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.draws import Draws
from robustgen.environment import row_code
from robustgen.metrics.intervals import wilson
from robustgen.perturb import enforce_budget
from robustgen.threat import ThreatModel
from robustgen.types import Norm

BATCH = 128
VERSIONS = {package: version(package) for package in ("torch", "adv-lib", "foolbox")}
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
        wrong = foolbox.criteria.Misclassification(y)
        starts: Any = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack().run(net, x, wrong)
        for i in right(model, starts, y).nonzero().flatten().tolist():  # noise itself may read as y
            starts[i] = x[(y != y[i]).nonzero()[0, 0]]
        return torch.as_tensor(kind(steps=STEPS).run(net, x, wrong, starting_points=starts))

    if importlib.util.find_spec("numba") is None:
        say("bb is left out: it needs numba")
        return found
    return found | {"bb": brendel_bethge}


def leftover(model: Classifier, threat: ThreatModel, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """Which samples joint-adaptive leaves standing, (n,); ``ids``: whose draws are whose."""
    batched = FixedBatch(model, BATCH, quick=quick_copy(model, x[:8]), sizes=range(1, BATCH + 1))
    batched.begin(len(x))
    images = JointAdaptive(threat)(batched, x, y, Draws(0, "outsiders", ids)).images
    return right(model, enforce_budget(threat, x, images).images, y)


@torch.no_grad()
def right(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Whether the model is right, (n,)."""
    return torch.cat([model.logits(part) for part in x.split(BATCH)]).argmax(1) == y


def measure(name: str, source: str, n: int, norm: Norm, eps: float | None) -> dict[str, object]:
    """How many survivors each attack breaks, and how many any of them."""
    model = load_model(name, data=source).eval().requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)
    defaults = {"digits": {"linf": 0.15, "l2": 0.6}, "cifar10": {"linf": 8 / 255, "l2": 0.5}}
    threat = ThreatModel(norm, eps or defaults[source][norm])
    x, y = first(source, n)

    def each(attack: str, chosen: Tensor, judge: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
        """What an attack does to the chosen samples, (n,) of bool, and its seconds; kept by the batch."""
        found: list[bool] = []
        seconds = 0.0
        for ids in chosen.split(BATCH) if len(chosen) else ():  # an empty tensor has one empty part

            def run(ids: Tensor = ids) -> dict[str, Any]:
                began = time.perf_counter()
                verdicts = judge(ids).tolist()
                return {"verdicts": verdicts, "seconds": time.perf_counter() - began}

            said = (attack, STEPS, threat.slug, threat.eps, ids.tolist(), VERSIONS, row_code())
            part = kept("outsiders", said, (*model.state_dict().values(), x[ids], y[ids]), run)
            found += part["verdicts"]
            seconds += part["seconds"]
            say(f"  {attack}: {sum(found)} of {len(found)}")
        return torch.tensor(found, dtype=torch.bool), round(seconds, 1)

    stands, seconds = each(
        "joint-adaptive", torch.arange(len(x)), lambda ids: leftover(model, threat, x[ids], y[ids], ids)
    )
    survivors = stands.nonzero().squeeze(1)
    result: dict[str, object] = {
        "model": name, "norm": norm, "eps": threat.eps, "n": len(x), "standing": len(survivors),
    }  # fmt: skip
    took = {"joint-adaptive": seconds}
    say(f"{name} {threat.slug}: joint-adaptive leaves {len(survivors)} of {len(x)}")
    broken = torch.zeros(len(survivors), dtype=torch.bool)
    for attack, find in outsiders(model, norm).items():

        def breaks(ids: Tensor, find: Find = find) -> Tensor:
            images = find(x[ids], y[ids]).nan_to_num()
            return ~right(model, images, y[ids]) & threat.contains(x[ids], images)

        wrong, took[attack] = each(attack, survivors, breaks)
        broken |= wrong
        result[attack] = int(wrong.sum())
    k, m = int(broken.sum()), len(survivors)
    share = {"share": k / m, "upper_bound": wilson(k, m).high} if m else {"share": 0.0, "upper_bound": 1.0}
    return result | {"broken": k, **share, "seconds": took}


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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    warnings.filterwarnings("ignore", module="foolbox")
    result = measure(a.model, a.data, a.n, a.norm, a.eps)
    result["versions"] = VERSIONS
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
