"""What a generative model's samples are worth: does an independent classifier see the class asked for?

    python benchmarks/samples.py [MODEL ...] [--data digits] [--n 200] [--seed 0] [--json] [--out FOLDER]

Every class is asked for as often. Joint models (jem, gmmc) sample by SGLD on log p(x, y), with the
steps, step and noise of their training's whole chains; models with a denoiser (cdn, egc, denoiser) by
Langevin steps at their highest noise level and the probability flow down from it, once as they are and
once with classifier-free guidance 2. egc, which is given the label there, also has a posterior that
never sees one; by that it samples too, from p(x) p(y | x)^guidance.

The first judge (softmax-DATA) is the one the project's bar names. That of digits never saw a picture
moved by a pixel, and the models of noisy pictures learned from such pictures: the second judge
(softmax-noise-DATA) did. Neither was trained together with a model.

Prints a line a model and, with ``--json``, all figures. ``--out`` also saves a sheet a model: samples
in the odd rows, and below each the training picture that is nearest to it in L2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robustgen import classifiers, data, registry, strict
from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.egc import EGC
from robustgen.classifiers.sampling import (
    classifier_free_guided,
    classifier_guided,
    sample_denoiser,
    sample_joint,
)
from robustgen.data import Dataset
from robustgen.metrics.intervals import wilson
from robustgen.training.recipe import ChainSpec, Recipe
from robustgen.types import ConditionalNoise

JUDGES = ("softmax", "softmax-noise")
FAMILIES = ("jem", "gmmc", "cdn", "egc", "denoiser")
GUIDANCE = (1.0, 2.0)
POSTERIOR = (1.0, 2.0, 4.0)  # guidance by the model's own classes
SHOWN = 5  # of each class


def samplers(name: str, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Samples of the classes ``y`` in [0, 1], by the words for how they were drawn."""
    folder = registry.model_folders()[name]
    model = classifiers.load(folder)
    levels = model.levels if isinstance(model, Denoiser) else model.noise
    generator = torch.Generator().manual_seed(seed)
    if isinstance(levels, ConditionalNoise):
        grey = torch.full((len(y), *model.input_shape), 0.5)
        ways = {f"guidance {weight:g}": classifier_free_guided(model, y, weight) for weight in GUIDANCE}
        if isinstance(model, EGC):
            ways |= {f"posterior {weight:g}": classifier_guided(model, y, weight) for weight in POSTERIOR}
        drawn = {how: sample_denoiser(way, grey, levels, generator=generator) for how, way in ways.items()}
        return {how: samples.clamp(0, 1) for how, samples in drawn.items()}
    assert isinstance(model, Classifier)
    spec = strict.read(Recipe, folder / "recipe.yaml").objective
    assert isinstance(spec, ChainSpec)
    steps = round(spec.steps / spec.reinit)
    samples = sample_joint(
        model, y, generator=generator, steps=steps, step_size=spec.step_size, noise=spec.noise
    )
    return {f"SGLD, {steps} steps": samples}


def measure(name: str, how: str, samples: Tensor, y: Tensor, train: Dataset) -> dict[str, Any]:
    """Each judge's agreement with its interval, and how far samples are from the training pictures."""
    row: dict[str, Any] = {"model": name, "sampler": how, "n": len(y), "judges": {}}
    for family in JUDGES:
        judge = f"{family}-{train.name}"
        model = classifiers.load(registry.model_folders()[judge])
        assert isinstance(model, Classifier)
        with torch.no_grad():
            right = model.logits(samples).argmax(1) == y
        low, high = wilson(int(right.sum()), len(y))
        classes = [float(right[y == k].float().mean()) for k in y.unique().tolist()]
        row["judges"][judge] = {
            "agreement": float(right.float().mean()), "ci_low": low, "ci_high": high, "by_class": classes
        }  # fmt: skip
    _, distance = nearest(samples, train)
    row["nearest_training_picture"] = float(distance.median())
    row["deviation_within_class"] = spread(samples, y)
    row["deviation_within_class_of_data"] = spread(train.images, train.labels)
    return row


def nearest(samples: Tensor, train: Dataset) -> tuple[Tensor, Tensor]:
    """The training picture that is nearest in L2, as an index, and its distance; (batch,) each."""
    distances = torch.cdist(samples.flatten(1), train.images.flatten(1))
    found = distances.min(1)
    return found.indices, found.values


def spread(images: Tensor, labels: Tensor) -> float:
    """Root mean square deviation of a pixel from the mean picture of its class."""
    squares = [(images[labels == k] - images[labels == k].mean(0)).square().mean() for k in labels.unique()]
    return float(torch.stack(squares).mean().sqrt())


def save_sheet(path: Path, samples: Tensor, y: Tensor, train: Dataset) -> None:
    """A column a class; in pairs of rows the first samples, and below each its nearest training picture."""
    from PIL import Image

    indices, _ = nearest(samples, train)
    columns = []
    for k in y.unique().tolist():
        places = (y == k).nonzero().flatten()[:SHOWN]
        pairs = torch.stack([samples[places], train.images[indices[places]]], 1).flatten(0, 1)
        columns.append(torch.cat([*functional.pad(pairs, (1, 1, 1, 1), value=0.5)], 1))
    sheet = np.round(255 * torch.cat(columns, 2).numpy()).astype(np.uint8)
    picture = Image.fromarray(sheet[0] if len(sheet) == 1 else sheet.transpose(1, 2, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(path)


def sentence(row: dict[str, Any]) -> str:
    """A measured model as a line."""
    judges = [
        f"{name} agrees {100 * j['agreement']:.1f} % [{100 * j['ci_low']:.1f}, {100 * j['ci_high']:.1f}]"
        for name, j in row["judges"].items()
    ]
    return f"{row['model']} ({row['sampler']}, n = {row['n']}): {', '.join(judges)}"


def generative(names: list[str], source: str) -> list[str]:
    """The models asked for, or every generative one of the zoo for that data."""
    folders = registry.model_folders()
    cards = {name: registry.load_card(folders[name]) for name in names or folders}
    return [n for n, card in cards.items() if names or (card.data == source and card.family in FAMILIES)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="zoo names (default: every generative one)")
    parser.add_argument("--data", default="digits", help="the data of the models")
    parser.add_argument("--n", type=int, default=200, help="samples a model; a multiple of the classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="a folder for the sheets of pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = data.load(options.data, "train")
    y = torch.arange(len(train.class_names)).repeat(options.n // len(train.class_names))
    rows = []
    for name in generative(options.models, options.data):
        for how, samples in samplers(name, y, options.seed).items():
            rows.append(measure(name, how, samples, y, train))
            if not options.json:
                print(sentence(rows[-1]), flush=True)
            if options.out:
                save_sheet(
                    options.out / f"{name}-{how.split(',')[0].replace(' ', '-')}.png", samples, y, train
                )
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
