"""How much of a figure is the seed of the training? The recipes of the zoo, trained anew under other seeds.

    python benchmarks/seeds.py [MODEL ...] [--data digits] [--seeds 1 2] [--protocol linf-0.15] [--json]

An interval over test pictures says nothing of this: it is that of one trained model. Every recipe is
trained once more for each seed, in a workspace of its own (``--out``); what is trained already is not
trained again. Then one report for all of them, the zoo's own model among them, and for each metric the mean
and the standard deviation (n - 1) over the models of a recipe. A model over a denoiser has no
recipe, and so no seed; one that starts from another's weights (``warm_start``) is left out, since that
one's seed would stay the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robustgen import data, registry
from robustgen.disk import atomic, read_json

SHOWN = (
    ("accuracy", "clean", ""), ("robust_accuracy", "autoattack-linf-0.15", ""), ("ece", "clean", ""),
    ("psnr_gain", "gradients", "sigma-0.25"), ("guidance_gain", "gradients", "sigma-0.4"),
    ("auroc", "ood-letters", "msp"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", help="zoo names (default: every model that is trained on the data)"
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--protocol", default="linf-0.15")
    parser.add_argument("--out", type=Path, default=Path("out/seeds"), help="the workspace")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    known = trained(arguments.data)
    if unknown := set(arguments.models) - set(known):
        parser.error(
            f"no recipe for {arguments.data}: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    folders = {name: registry.model_folders()[name] for name in arguments.models or known}
    for seed in arguments.seeds:
        for name, folder in folders.items():
            train(name, folder, seed, arguments.out)
    table = {}
    for name in folders:
        names = [name, *(renamed(name, seed) for seed in arguments.seeds)]
        table[name] = measure(names, arguments.data, arguments.protocol, arguments.out)
        if not arguments.json:
            print(sentence(name, table[name]), flush=True)
    if arguments.json:
        print(json.dumps(table, indent=1))


def trained(source: str) -> list[str]:
    """The zoo's classifiers for that data which are trained from nothing."""
    found = []
    for name, folder in registry.model_folders().items():
        card = registry.load_card(folder)
        if card.data == source and card.over is None and card.family != "denoiser":
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
            found += [] if "warm_start" in recipe else [name]
    return found


def renamed(name: str, seed: int) -> str:
    """The name of a model that was trained under another seed.

    >>> renamed("pgd-at-digits", 1)
    'pgd-at-seed1-digits'
    """
    family, _, source = name.rpartition("-")
    return f"{family}-seed{seed}-{source}"


def train(name: str, folder: Path, seed: int, out: Path) -> None:
    """Train a recipe under another seed into the workspace, unless that was done."""
    new = renamed(name, seed)
    target = out / "models" / new
    if (target / "card.yaml").exists():
        return
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"name": new, "seed": seed}
    path = out / "recipes" / new / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "robustgen.cli", "train", str(path), "--out", str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(names: list[str], source: str, protocol: str, out: Path) -> dict[str, Any]:
    """Mean, standard deviation and values of every metric that all models have, by its name."""
    report = out / f"report-{names[0]}"
    n = len(data.load(source))
    command = [sys.executable, "-m", "robustgen.cli", "report", *names, "--data", source]
    command += ["--protocol", protocol, "--n", str(n), "--out", str(report.resolve())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    subprocess.run(command, check=True, cwd=out, env=environment, stdout=subprocess.DEVNULL)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for metric in read_json(report / "summary.json")["metrics"]:
        key = (metric["metric"], metric["evaluation"], metric["variant"])
        found.setdefault(key, {})[metric["model"]] = metric["value"]
    return {
        " ".join(part for part in key if part): {
            "mean": float(np.mean(list(values.values()))),
            "sd": float(np.std(list(values.values()), ddof=1)),
            "values": [values[name] for name in names],
        }
        for key, values in found.items()
        if len(values) == len(names)
    }


def sentence(name: str, table: dict[str, Any]) -> str:
    """The metrics that matter most as a line."""
    keys = [" ".join(part for part in key if part) for key in SHOWN]
    said = [f"{key} {table[key]['mean']:.4f} +- {table[key]['sd']:.4f}" for key in keys if key in table]
    return f"{name}: {', '.join(said)}"


if __name__ == "__main__":
    main()
