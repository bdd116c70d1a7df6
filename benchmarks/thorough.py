"""What ending jobs early saves and loses: AutoAttack as it is beside AutoAttack with ``thorough: true``.

    python benchmarks/thorough.py [MODEL:NORM:EPS ...] [--data NAME] [--n N] [--json]

Both take the same draws, in float32. Without an argument: four nets of digits in three norms, each at
an eps where a good share of the samples stands.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from robustgen import load_data, load_model
from robustgen.attacks.autoattack import AutoAttack
from robustgen.audit import AUDIT
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

SETTINGS = (
    "jem-digits:linf:0.15", "softmax-noise-digits:linf:0.15", "cdn-digits:linf:0.14",
    "pgd-at-digits:linf:0.22", "jem-digits:l2:0.6", "pgd-at-digits:l2:0.75",
    "jem-digits:l1:1.5", "cdn-digits:l1:1.5",
)  # fmt: skip
BATCH = 128


def measure(setting: str, data: Dataset) -> dict[str, Any]:
    """The samples that stand under both, seconds, and the calls that a survivor costs."""
    name, norm, eps = setting.split(":")
    net = load_model(name)
    x, y = data.images, data.labels
    result: dict[str, Any] = {"setting": setting, "n": len(x)}
    stands = {}
    for kind in ("as_it_is", "thorough"):
        batch = min(BATCH, len(x))
        model = FixedBatch(net, batch, quick=quick_copy(net, x[:8]), sizes=range(1, batch + 1))
        model.begin(len(x))
        attack = AutoAttack(ThreatModel(norm, float(eps)), thorough=kind == "thorough")  # type: ignore[arg-type]
        began = time.perf_counter()
        found = attack(model, x, y, Draws(0, "benchmark", torch.arange(len(x))))
        seconds = time.perf_counter() - began
        with torch.no_grad():
            stands[kind] = right = net.logits(found.images).argmax(1) == y
        result[kind] = {
            "robust": int(right.sum()), "seconds": round(seconds, 1),
            "broken_by_audit": (found.broken_by or []).count(AUDIT),
            "forwards_per_survivor": round(float(model.forwards[right].mean())) if right.any() else None,
            "backwards_per_survivor": round(float(model.backwards[right].mean())) if right.any() else None,
        }  # fmt: skip
    result["lost"] = int((stands["as_it_is"] & ~stands["thorough"]).sum())
    result["won"] = int((stands["thorough"] & ~stands["as_it_is"]).sum())
    return result


def sentence(row: dict[str, Any]) -> str:
    """A measured setting as a line."""
    ours, full = row["as_it_is"], row["thorough"]
    calls = [f"{one['forwards_per_survivor']} and {one['backwards_per_survivor']}" for one in (ours, full)]
    return (
        f"{row['setting']}: {ours['robust']} of {row['n']} stand, thorough {full['robust']} "
        f"(lost {row['lost']}, won {row['won']}); forwards and gradients a survivor {calls[0]}, "
        f"thorough {calls[1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", default=SETTINGS, metavar="MODEL:NORM:EPS")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.data == "digits" else torch.get_num_threads())
    data = load_data(options.data).slice(0, options.n)
    rows = []
    for setting in options.settings:
        row = measure(setting, data)
        rows.append(row)
        if not options.json:
            print(sentence(row), flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    total = {kind: sum(row[kind]["robust"] for row in rows) for kind in ("as_it_is", "thorough")}
    print(f"{total['as_it_is']} stand, thorough {total['thorough']}")


if __name__ == "__main__":
    main()
