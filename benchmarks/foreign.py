"""Does a joint model's density tell foreign pictures better than its twin's energy and confidence?

    python benchmarks/foreign.py [MODEL] [--twin MODEL] [--score log_prob] [--foreign textures ...] [--n 1000]

Runs `robustgen report` on both models, clean and foreign pictures alone; what is finished is not
computed again. Prints, for each foreign set, AUROC by MODEL's score less AUROC by the twin's energy and
maximum softmax probability, with the 95 % interval of the paired difference (bootstrap over the same
pictures). A report itself compares two models by one score at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from robustgen.metrics.comparisons import Comparison, Key, compare
from robustgen.metrics.estimate import Estimate
from robustgen.metrics.measure import measure
from robustgen.metrics.rows import read_run
from robustgen.store import RunStore

BESIDE = ("energy", "msp")
PROTOCOL = """name: foreign
version: 1
summary: Clean and foreign pictures alone.
reference: Hendrycks and Gimpel 2017, arXiv:1610.02136
cost: a forward and a gradient a picture
data:
  any: {{eps: {{}}, foreign: [{sets}]}}
evaluations:
  - kind: clean
  - kind: ood
"""


def areas(out: Path, model: str) -> list[Estimate]:
    """AUROC by every score, of a model's run in a report's folder."""
    run = read_run(RunStore.read(out / "runs" / model))
    return [estimate for estimate in measure(run) if estimate.metric.metric == "auroc"]


def beside(ours: Estimate, theirs: Estimate) -> Comparison:
    """The paired difference of two models' AUROC, each by a score of its own."""
    pair = f"{ours.metric.variant} less {theirs.metric.variant}"
    both = [replace(one, metric=replace(one.metric, variant=pair)) for one in (ours, theirs)]
    return compare(both, [Key(ours.metric.evaluation, pair, "auroc")])[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="jem-cifar10")
    parser.add_argument("--twin", help="default: softmax-noise of the same data")
    parser.add_argument("--score", default="log_prob")
    parser.add_argument("--foreign", nargs="+", default=["textures", "letters"])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/foreign"))
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    data = a.model.rpartition("-")[2]
    twin = a.twin or f"softmax-noise-{data}"
    a.out.mkdir(parents=True, exist_ok=True)
    protocol = a.out / "foreign.yaml"
    protocol.write_text(PROTOCOL.format(sets=", ".join(a.foreign)))
    command = [sys.executable, "-m", "robustgen.cli", "report", a.model, twin, "--data", data]
    command += ["--protocol", str(protocol), "--n", str(a.n), "--out", str(a.out / a.model)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    ours, theirs = areas(a.out / a.model, a.model), areas(a.out / a.model, twin)
    rows = []
    for mine in (one for one in ours if one.metric.variant == a.score):
        rows += [
            (mine.metric, other.metric, beside(mine, other))
            for other in theirs
            if other.metric.evaluation == mine.metric.evaluation and other.metric.variant in BESIDE
        ]
    if a.json:
        print(json.dumps([test.__dict__ for _, _, test in rows], indent=1))
        return
    for metric, other, test in rows:
        print(
            f"{metric.evaluation}: {metric.model} by {metric.variant} {metric.value:.3f} "
            f"[{metric.ci_low:.3f}, {metric.ci_high:.3f}], "
            f"{other.model} by {other.variant} {other.value:.3f}: "
            f"{test.difference:+.3f} [{test.ci_low:+.3f}, {test.ci_high:+.3f}], n = {test.n}"
        )


if __name__ == "__main__":
    main()
