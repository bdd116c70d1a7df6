"""What ImageNet costs with a diffusion classifier on 1, 8 and 1,000 GPUs, from figures measured elsewhere.

Three things are known: how often an attack asks about a picture (rows of a published report), how many
denoiser calls an answer takes (the classifier's own count), and how many operations a call takes (counted
in the forward of DiT-XL/2 at 256 pixels, by shapes alone; its autoencoder, called once a picture, is left
out). What a GPU makes of its peak is not known here: ``--flops`` says what is taken for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from robustgen.cost import duration

DIT = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32,
       "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}  # fmt: skip
CLASSES = 1000
REPORT = Path(__file__).parents[1] / "reports" / "digits-linf-0.15" / "summary.json"
GPUS = (1, 8, 1000)


def denoiser(device: str) -> Any:
    """DiT-XL/2 (Peebles and Xie 2023, arXiv 2212.09748) without trained weights."""
    from diffusers import DiTTransformer2DModel

    with torch.device(device):
        net: Any = DiTTransformer2DModel(**DIT)
        return net.eval().requires_grad_(False)


def inputs(device: str) -> dict[str, Any]:
    """One picture's, in the autoencoder's space."""
    return {
        "hidden_states": torch.zeros(1, 4, 32, 32, device=device),
        "timestep": torch.zeros(1, dtype=torch.long, device=device),
        "class_labels": torch.zeros(1, dtype=torch.long, device=device),
    }


def operations() -> int:
    """Of one forward for one picture, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser("meta")(**inputs("meta"))
    return int(counter.get_total_flops())


def seconds_here() -> float:
    """Of one such forward on this machine's processor, in float32: the best of three."""
    model, best = denoiser("cpu"), float("inf")
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            model(**inputs("cpu"))
            best = min(best, time.perf_counter() - began)
    return best


def asked(report: Path, evaluation: str) -> dict[str, tuple[float, float]]:
    """Forwards and backwards of a classifier for one picture, by model."""
    found = {}
    for model in json.loads(report.read_text())["models"]:
        for cost in model["costs"]:
            if cost["evaluation"].startswith(evaluation):
                found[model["name"]] = cost["forwards"], cost["backwards"]
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noisy", type=int, default=16, help="noisy pictures a class; diffusion-digits: 16")
    parser.add_argument("--flops", type=float, default=0.4 * 989e12, help="operations a GPU makes a second")
    parser.add_argument("--here", action="store_true", help="time a call on this processor as well")
    options = parser.parse_args()
    call = operations()
    answer = options.noisy * CLASSES * call / options.flops
    print(f"a call: {call / 1e9:.0f} GFLOP; an answer: {options.noisy * CLASSES:,} calls, {answer:.1f} s")
    if options.here:
        taken = seconds_here()
        rate, whole = call / taken / 1e9, duration(taken * options.noisy * CLASSES)
        print(f"here a call takes {taken:.2f} s ({rate:.0f} GFLOP/s), an answer {whole}")
    attacks = asked(REPORT, "autoattack")
    least, most = (pick(attacks, key=lambda name: sum(attacks[name])) for pick in (min, max))
    rows = {
        "clean, 50,000 pictures, every class": (50_000, (1.0, 0.0)),
        "clean, 50,000 pictures, a quarter of the calls": (50_000, (0.25, 0.0)),
        f"AutoAttack, 5,000 pictures, asked as often as {least}": (5_000, attacks[least]),
        f"AutoAttack, 5,000 pictures, asked as often as {most}": (5_000, attacks[most]),
    }
    print("| | GPU days | " + " | ".join(f"{n:,} GPU{'s' * (n > 1)}" for n in GPUS) + " |")
    print("|--|--|" + "--|" * len(GPUS))
    for what, (pictures, (forwards, backwards)) in rows.items():
        # a backward runs the forward anew, for want of memory, and costs two more
        total = pictures * (forwards + 3 * backwards) * answer
        shares = " | ".join(duration(total / n) for n in GPUS)
        print(f"| {what} | {total / 86400:,.1f} | {shares} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
