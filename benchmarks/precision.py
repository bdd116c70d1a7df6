"""Does bfloat16 serve a loss that differentiates twice? cdn, trained in it and in float32 by the same draws.

    python benchmarks/precision.py [--recipe models/cdn-mnist/recipe.yaml] [--steps 300] [--n 256] [--json]

The recipe's model is trained for a few hundred steps in each precision, the rate warmed up and brought down
over these. Prints the losses of the last 50 steps, the PSNR of the denoiser in float32 on the first n
calibration pictures, and processor seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from robustgen import data, strict
from robustgen.classifiers import build
from robustgen.training import make_objective
from robustgen.training.loop import learning_rate, make_optimiser, seeded
from robustgen.training.recipe import Recipe

SIGMAS = (0.1, 0.25, 0.5)
LAST = 50


def train(recipe: Recipe, precision: str, steps: int, n: int) -> dict[str, Any]:
    """A short training in one precision, and what it is worth."""
    train, pictures = data.load(recipe.data, "train"), data.load(recipe.data, "calibration").images[:n]
    options = recipe.options | {"num_classes": len(train.class_names), "input_shape": list(train.shape)}
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    torch.manual_seed(0)
    model: Any = build(recipe.arch, options, where=recipe.name).to(memory_format=layout)
    objective = make_objective(recipe.objective, train)
    spec = recipe.optimiser.model_copy(update={"warm_up": min(recipe.optimiser.warm_up, steps // 6)})
    optimiser = make_optimiser(spec, model)
    began, losses = time.process_time(), []
    for step in range(steps):
        generator = seeded(torch.device("cpu"), "precision", step)
        rows = torch.randint(len(train), (recipe.batch,), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, step, steps)
        objective.progress = step / steps
        x = train.images[rows].contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, parts = objective.loss(model, x, train.labels[rows], generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip or torch.inf)
        optimiser.step()
        losses.append(parts)
    seconds = time.process_time() - began
    mean = {key: sum(p[key] for p in losses[-LAST:]) / len(losses[-LAST:]) for key in losses[-1]}
    return {"precision": precision, "seconds": seconds, **mean, "psnr": psnr(model.eval(), pictures)}


def psnr(model: Any, pictures: torch.Tensor) -> dict[str, float]:
    """dB at each sigma, the noise drawn once."""
    found = {}
    for sigma in SIGMAS:
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
        estimate = model.denoise(pictures + sigma * noise, sigma).detach()
        found[f"{sigma:g}"] = -10 * float((estimate - pictures).square().mean().log10())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("models/cdn-mnist/recipe.yaml"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = strict.read(Recipe, arguments.recipe)
    found = [train(recipe, precision, arguments.steps, arguments.n) for precision in ("bf16", "float32")]
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(map(str, found)))


if __name__ == "__main__":
    main()
