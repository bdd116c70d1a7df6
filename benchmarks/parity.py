"""The parity table: attacks of this package beside the reference's, pyautoattack, sample by sample.

    python benchmarks/parity.py MODEL [--data NAME] [--n N] [--norms linf l2 l1] [--eps E E E]
        [--attacks apgd-ce apgd-t fab-t square cascade-replayed cascade] [--itself] [--double] [--json]

For each norm the four parts of AutoAttack run alone, from the clean pictures that the model gets
right: ours as ``replay`` runs them (the reference's order, counts and draws) with the float32
cross-entropy, and the reference itself, batch by batch with the same seed. Then both cascades run on
all pictures: ours of these same replayed parts, each on the batches that the part before left
(``cascade-replayed``), and as users run it, with its own draws and skips (``cascade``). Robust
accuracies are of the chosen pictures for a part, of all for a cascade.

On digits the test split's 400 pictures are followed by those of the calibration split.

``--itself`` puts the reference in our place, with what parity leaves open changed: a part's eps is the
next larger number of float32, so that last bits differ, and the cascade has another seed. ``--double`` runs
model and pictures in float64 on both sides, where last bits decide less.

``--eps`` gives one number a norm; without it, that of a grid at which a short APGD of the
reference leaves nearest to half. Every cell is kept in the user's cache folder by the hash of all that
it depends on, so a benchmark that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import torch
from kept import kept
from pyautoattack import AutoAttack as Reference
from pyautoattack.autopgd_base import APGDAttack
from splits import first
from torch import Tensor
from torch.nn import functional

from robustgen import load_model
from robustgen.attacks.apgd import APGD
from robustgen.attacks.autoattack import STANDARD, AutoAttack, AutoAttackBudget, build_part
from robustgen.attacks.fab import FAB
from robustgen.attacks.replay import replay
from robustgen.attacks.search import Search
from robustgen.attacks.square import square
from robustgen.attacks.victim import Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.environment import row_code
from robustgen.metrics.intervals import wilson
from robustgen.threat import ThreatModel
from robustgen.types import Norm

NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# From what plain nets on 32x32 colour need to what robust ones on 8x8 grey do.
GRID: dict[Norm, list[float]] = {
    "linf": [k / 255 for k in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80)],
    "l2": [0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.3, 1.6, 2.0],
    "l1": [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0],
}
ATTACKS = [*STANDARD, "cascade-replayed", "cascade"]
Side = Literal["reference", "itself", "ours"]
SEED = 0


class Subject(NamedTuple):
    """A model and its pictures, the batch that both sides get, and the attacks' budget."""

    model: Classifier
    x: Tensor
    y: Tensor
    batch: int
    budget: AutoAttackBudget


def cached(subject: Subject, *key: object, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns (of JSON's types), once for this model, these pictures and ``key``."""
    said = (key, subject.batch, subject.budget, torch.__version__, version("pyautoattack"))
    return kept("parity", said, (*subject.model.state_dict().values(), subject.x, subject.y), compute)


def reference(subject: Subject, norm: Norm, eps: float, seed: int = SEED) -> Reference:
    """pyautoattack's standard version with the subject's budget."""
    budget = subject.budget
    attack = Reference(subject.model, norm=NORMS[norm], eps=eps, seed=seed, device="cpu")
    for one in (attack.apgd, attack.apgd_targeted):
        one.n_iter = one.n_iter_orig = budget.n_iter
        one.n_iter_2 = max(int(0.22 * budget.n_iter), 1)
        one.n_iter_min = max(int(0.06 * budget.n_iter), 1)
        one.size_decr = max(int(0.03 * budget.n_iter), 1)
    attack.fab.n_iter, attack.square.n_queries = budget.n_iter, budget.n_queries
    if budget.n_target_classes is not None:
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = budget.n_target_classes
    attack.verbose = False
    return attack


def search(name: str, norm: Norm, eps: float, subject: Subject) -> Search:
    """Our part in the reference's configuration: its own cross-entropy with its rounding, all questions."""
    threat = ThreatModel(norm, eps)
    if name == "square":
        return square(threat, n_queries=subject.budget.n_queries)
    found = build_part(name, threat, subject.budget, subject.model.num_classes)
    if name == "fab-t":  # every question of the reference's: users get LeanFAB, which asks half of them
        return FAB(threat, jobs=found.jobs, n_iter=subject.budget.n_iter)
    if name == "apgd-ce":
        assert isinstance(found, APGD)
        found.loss = lambda z, y, target: functional.cross_entropy(z, y, reduction="none")
        found.initial_loss = 0.0
    return found


def right(subject: Subject) -> Tensor:
    """Which pictures the model gets right, (n,)."""
    with torch.no_grad():
        predicted = [subject.model.logits(part).argmax(1) for part in subject.x.split(subject.batch)]
    return torch.cat(predicted) == subject.y


def alone(subject: Subject, name: str, norm: Norm, eps: float, side: Side) -> list[bool]:
    """Whether one part leaves each picture that was right standing."""
    chosen = right(subject)
    x, y = subject.x[chosen], subject.y[chosen]
    standing: list[bool] = []
    for a, b in zip(x.split(subject.batch), y.split(subject.batch), strict=True):
        if side == "ours":
            images = replay(search(name, norm, eps, subject), Victim(subject.model), a, b, SEED).images
        else:
            attack = reference(subject, norm, next_eps(eps) if side == "itself" else eps)
            attack.attacks_to_run = [name]
            images = attack.run_standard_evaluation(a, b, batch_size=len(a))[0]
        with torch.no_grad():
            standing += (subject.model.logits(images).argmax(1) == b).tolist()
    return standing


def replayed(subject: Subject, norm: Norm, eps: float, side: Side) -> list[bool]:
    """Whether each picture is right and stands the standard cascade, ours as the reference would run it."""
    if side != "ours":
        return cascade(subject, norm, eps, side)
    left = right(subject)
    for name in STANDARD:
        attack = search(name, norm, eps, subject)
        for rows in left.nonzero().squeeze(1).split(subject.batch):
            y = subject.y[rows]
            images = replay(attack, Victim(subject.model), subject.x[rows], y, SEED).images
            with torch.no_grad():
                left[rows] = subject.model.logits(images).argmax(1) == y
    return left.tolist()


def cascade(subject: Subject, norm: Norm, eps: float, side: Side) -> list[bool]:
    """Whether each picture is right and stands the standard cascade, ours as users run it."""
    x, y = subject.x, subject.y
    if side == "ours":
        model = FixedBatch(subject.model, subject.batch)
        model.begin(len(x))
        ours = AutoAttack(ThreatModel(norm, eps), **subject.budget.model_dump(exclude_defaults=True))
        images = ours(model, x, y, Draws(SEED, "parity", torch.arange(len(x)))).images
    else:
        attack = reference(subject, norm, eps, seed=SEED + (side == "itself"))
        images = attack.run_standard_evaluation(x, y, batch_size=subject.batch)[0]
    with torch.no_grad():
        return [
            bool(right)
            for a, b in zip(images.split(subject.batch), y.split(subject.batch), strict=True)
            for right in subject.model.logits(a).argmax(1) == b
        ]


RUNS = {"cascade": cascade, "cascade-replayed": replayed}


def next_eps(eps: float) -> float:
    """The next larger number of float32."""
    return float(torch.nextafter(torch.tensor(eps), torch.tensor(torch.inf)))


def everything_in_float64() -> None:
    """New tensors and draws, and what would be rounded to float32, as by the reference's L1 projection."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def find_eps(subject: Subject, norm: Norm) -> float:
    """The eps of the grid at which 20 steps of the reference's APGD-CE leave nearest to half of 64."""
    chosen = right(subject).nonzero().squeeze(1)[:64]
    x, y = subject.x[chosen], subject.y[chosen]

    def left(eps: float) -> float:
        attack = APGDAttack(subject.model, norm=NORMS[norm], eps=eps, n_iter=20, seed=SEED, device="cpu")
        with torch.no_grad():
            return float((subject.model(attack.perturb(x, y)).argmax(1) == y).float().mean())

    return min(GRID[norm], key=lambda eps: abs(left(eps) - 0.5))


def row(name: str, eps: float, theirs: list[bool], other: Side, found: list[bool]) -> dict[str, Any]:
    """One line of the table, the reference beside ``other``; shares in %."""
    n = len(theirs)
    equal = sum(a == b for a, b in zip(theirs, found, strict=True))
    return {
        "attack": name,
        "eps": eps,
        "n": n,
        "reference": 100 * sum(theirs) / n,
        other: 100 * sum(found) / n,
        "equal": 100 * equal / n,
        "interval": [100 * v for v in wilson(equal, n)],
        f"{other}_alone": sum(a and not b for a, b in zip(theirs, found, strict=True)),
        "reference_alone": sum(b and not a for a, b in zip(theirs, found, strict=True)),
    }


def measure(
    subject: Subject,
    norm: Norm,
    eps: float | None,
    attacks: list[str],
    other: Side,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The lines of one norm: the reference beside ``other``."""
    at = cached(subject, "eps", norm, compute=lambda: find_eps(subject, norm)) if eps is None else eps
    lines = []
    for name in attacks:
        began, pair = time.perf_counter(), []
        for side in ("reference", other):
            run = partial(RUNS.get(name, partial(alone, name=name)), subject, norm=norm, eps=at, side=side)
            code = row_code() if side == "ours" else ""
            key = name if side == "ours" else name.removesuffix("-replayed")  # the reference has one cascade
            pair.append(cached(subject, key, norm, at, side, code, compute=run))
        lines.append(row(name, at, pair[0], other, pair[1]))
        line = lines[-1]
        seconds = time.perf_counter() - began
        alone_by = f"{other} alone {line[f'{other}_alone']}, by the reference alone {line['reference_alone']}"
        say(
            f"{norm:<5} {at:<8.4g} {name:<8} left standing: reference {line['reference']:6.2f} %, {other} "
            f"{line[other]:6.2f} %; equal verdicts {line['equal']:6.2f} % of {line['n']} (broken by "
            f"{alone_by}; {seconds:.0f} s)"
        )
    return lines


def main() -> int:
    """Print the table; exit 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", help="default: the last part of the model's name, as in softmax-digits")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--norms", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--eps", nargs="+", type=float, help="one number a norm")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--itself", action="store_true", help="the reference in place of ours")
    parser.add_argument("--double", action="store_true", help="model and pictures in float64, on both sides")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--n-iter", type=int, default=100)
    parser.add_argument("--n-queries", type=int, default=5000)
    parser.add_argument("--n-target-classes", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    a = parser.parse_args()
    if a.eps is not None and len(a.eps) != len(a.norms):
        parser.error("--eps: expected one number a norm")
    name = a.data or a.model.rpartition("-")[2]
    x, y = first(name, a.n)
    model = load_model(a.model, name)
    if a.double:
        everything_in_float64()
        model, x = model.double(), x.double()
    budget = AutoAttackBudget(n_iter=a.n_iter, n_queries=a.n_queries, n_target_classes=a.n_target_classes)
    subject = Subject(model.eval().requires_grad_(False), x, y, a.batch, budget)
    stream = sys.stderr if a.json else sys.stdout
    warnings.simplefilter("ignore", Warning)  # of the reference, about gradients that are 0
    say = partial(print, file=stream, flush=True)
    table = {
        norm: measure(subject, norm, eps, a.attacks, "itself" if a.itself else "ours", say)
        for norm, eps in zip(a.norms, a.eps or [None] * len(a.norms), strict=True)
    }
    if a.json:
        versions = {name: version(name) for name in ("torch", "pyautoattack")}
        print(json.dumps({"setting": vars(a), "versions": versions, "norms": table}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
