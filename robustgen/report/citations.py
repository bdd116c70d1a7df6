"""BibTeX of the attacks, models, data and metrics that a report used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from robustgen.metrics.rows import is_attack
from robustgen.report.content import EvaluationEntry, Summary

CASCADE = ("croce2020reliable", "croce2020minimally", "andriushchenko2020square")
# By the name of an attack without its options.
ATTACKS = {
    "autoattack": CASCADE,
    "joint-adaptive": (*CASCADE, "tramer2020adaptive", "athalye2018obfuscated"),
    "detector-aware": ("tramer2020adaptive", "croce2020reliable"),
    "apgd": ("croce2020reliable",),
    "fab": ("croce2020minimally",),
    "square": ("andriushchenko2020square",),
    "pgd": ("madry2018towards",),
}
SPARSE = "croce2021mind"
FAMILIES = {
    "jem": ("grathwohl2020your",),
    "gmmc": ("yang2021generative",),
    "egc": ("guo2023egc",),
    "cdn": ("thiry2024classification",),
    "softmax-noise": ("thiry2024classification",),
    "diffusion": ("li2023your", "karras2022elucidating"),
    "score": ("zimmermann2021score", "karras2022elucidating"),
    "pgd-at": ("madry2018towards",),
    "robustbench": ("croce2021robustbench",),
}
DATA = {
    "digits": ("alpaydin1998optical",),
    "mnist": ("lecun1998gradient",),
    "cifar10": ("krizhevsky2009learning",),
    "cifar100": ("krizhevsky2009learning",),
    "svhn": ("netzer2011reading",),
    "textures": ("cimpoi2014describing",),
}
METRICS = {
    "ece": ("guo2017calibration",),
    "adaptive_ece": ("nguyen2015posterior",),
    "brier": ("brier1950verification",),
    "aurc": ("geifman2019bias",),
    "e_aurc": ("geifman2019bias",),
    "corruption_accuracy": ("hendrycks2019benchmarking",),
    "guidance_gain": ("karras2022elucidating",),
}
SCORES = {
    "msp": ("hendrycks2017baseline",),
    "energy": ("liu2020energy",),
    "max_logit": ("hendrycks2022scaling",),
}


class Citation(NamedTuple):
    """A work, and what the report used it for."""

    key: str
    used_for: tuple[str, ...]
    bibtex: str


def citations(content: Summary) -> list[Citation]:
    """The works that a report used, in the order of references.bib."""
    uses: dict[str, dict[str, None]] = {}
    for key, used_for in _used(content):
        uses.setdefault(key, {})[used_for] = None
    return [Citation(key, tuple(uses[key]), bibtex) for key, bibtex in _entries().items() if key in uses]


def _used(content: Summary) -> Iterator[tuple[str, str]]:
    """(key of a work, what it was used for), with repetitions."""
    for model in content["models"]:
        family = model["name"].partition("-")[0] if model["family"] == "custom" else model["family"]
        yield from ((key, model["name"]) for key in FAMILIES.get(family, ()))
        for detail in model["evaluations"]:
            if detail["kind"] in ("attack", "detected"):
                yield from _attack(detail)
            yield from ((key, detail["data"]) for key in DATA.get(detail["data"], ()))
    for metric in content["metrics"]:
        yield from ((key, metric["metric"]) for key in METRICS.get(metric["metric"], ()))
        if metric["metric"] == "auroc":
            yield from ((key, f"the score {metric['variant']}") for key in SCORES.get(metric["variant"], ()))


def _attack(detail: EvaluationEntry) -> Iterator[tuple[str, str]]:
    name = str(detail["attack"])
    for known, keys in ATTACKS.items():
        if is_attack(detail, known):
            yield from ((key, name) for key in keys)
            if detail["norm"] == "l1" and "croce2020reliable" in keys:
                yield SPARSE, f"{name} in L1"


def _entries() -> dict[str, str]:
    """The entries of references.bib by key."""
    text = files("robustgen.report").joinpath("references.bib").read_text(encoding="utf-8")
    found = [entry.strip() for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry.strip()]
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in found}  # type: ignore[index]
