"""EGC's two branches on the same pictures: the pooled logits, and the energy's own log p(x, y).

    python benchmarks/branches.py [MODEL] [--split test] [--sigmas 0.01 0.1 0.25 0.5] [--json]

Only the first is trained to classify; they belong to one joint density only if they agree. Prints, for
every noise level, each branch's accuracy with Wilson's interval, the share of pictures on which they
name one class, and McNemar's test of the pair. The noise comes from a seed, the same for both; at the
model's lowest level pictures are read as they are.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from robustgen import classifiers, data, registry
from robustgen.classifiers.egc import EGC
from robustgen.metrics.intervals import mcnemar, wilson
from robustgen.types import ConditionalNoise


def compare(model: EGC, x: Tensor, y: Tensor, sigma: float, generator: torch.Generator) -> dict[str, Any]:
    """Both branches on pictures ``x`` (batch, channels, height, width) of the classes ``y`` at ``sigma``."""
    assert isinstance(model.noise, ConditionalNoise)
    noise = sigma * torch.randn(x.shape, generator=generator)
    noisy = x if sigma == model.noise.low else x + noise
    with torch.no_grad():
        named = {
            "logits": model.logits(noisy, sigma).argmax(1),
            "energy": model.class_energies(noisy, sigma).argmax(1),
        }
    right = {branch: classes == y for branch, classes in named.items()}
    row: dict[str, Any] = {"sigma": sigma, "n": len(y)}
    for branch, hits in right.items():
        row[branch] = [float(hits.float().mean()), *wilson(int(hits.sum()), len(y))]
    row["same_class"] = float((named["logits"] == named["energy"]).float().mean())
    only = (right["logits"] & ~right["energy"]).sum(), (right["energy"] & ~right["logits"]).sum()
    row["p"] = mcnemar(*map(int, only))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="egc-digits")
    parser.add_argument("--split", default="test", choices=("calibration", "test"))
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.01, 0.1, 0.25, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = registry.model_folders()[options.model]
    model = classifiers.load(folder)
    if not isinstance(model, EGC):
        parser.error(f"{options.model} has no two branches: name a model of the family egc")
    samples = data.load(registry.load_card(folder).data, options.split)
    generator = torch.Generator().manual_seed(options.seed)
    rows = [compare(model, samples.images, samples.labels, s, generator) for s in options.sigmas]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        said = [f"{b} {row[b][0]:.4f} [{row[b][1]:.4f}, {row[b][2]:.4f}]" for b in ("logits", "energy")]
        print(f"sigma {row['sigma']:g} (n = {row['n']}): {', '.join(said)}, one class on "
              f"{row['same_class']:.4f}, McNemar p = {row['p']:.2g}")  # fmt: skip


if __name__ == "__main__":
    main()
