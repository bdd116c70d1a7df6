"""The columns of the main table: which numbers stand in it, and how they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from robustgen.config import of_data
from robustgen.metrics.comparisons import Key
from robustgen.metrics.verdicts import MAJORITY, WORST, WORST_OF
from robustgen.report.content import of_kind, stochastic
from robustgen.report.formats import DETECTED_BY, NORMS, eps_text, foreign_name, sigma_text
from robustgen.threat import ThreatModel, worst_name

SCORES = (
    ("energy", "energy", "the logsumexp of the logits (energy; not every joint model's log p(x))"),
    ("log_prob", "log p(x)", "the model's own log p(x), empty for models without one,"),
)
"""The scores of foreign pictures that the main table shows: variant, title, meaning."""

VERDICTS = (
    (MAJORITY, "majority", "right in most draws of a stochastic model"),
    (WORST, f"worst of {WORST_OF}", f"right in all of {WORST_OF} draws of a stochastic model"),
)
"""What a stochastic model has beside the mean over its draws: variant, title, meaning."""


@dataclass(frozen=True)
class Column:
    """A column: the group it stands under, its title, its meaning in plain words, and its numbers."""

    group: str
    title: str
    meaning: str
    key: Key
    higher_is_better: bool


def columns(content: dict[str, Any]) -> list[Column]:
    """The columns for which any model has a number, in reading order."""
    present = {Key(m["evaluation"], m["variant"], m["metric"]) for m in content["metrics"]}
    return [column for column in _candidates(content) if column.key in present]


def _candidates(content: dict[str, Any]) -> Iterator[Column]:
    yield from _verdicts(
        content, "Clean", "accuracy", "share of the test pictures, as they are, that the model gets right",
        Key("clean", "", "accuracy"),
    )  # fmt: skip
    yield from _attacked(content)
    yield from _guarded(content)
    yield Column(
        "Corrupted", "accuracy",
        "accuracy on noisy, brighter, paler, ... pictures: the mean over kinds and severities",
        Key("corruptions", "all", "corruption_accuracy"), True,
    )  # fmt: skip
    yield Column(
        "Calibrated", "ECE ↓", "expected calibration error on clean pictures: how far confidence is from the "
        "share right; lower is better", Key("clean", "", "ece"), False,
    )  # fmt: skip
    for detail in of_kind(content, "ood"):
        for score, title, called in SCORES:
            yield Column(
                "Foreign, AUROC", f"{foreign_name(detail)} by {title}",
                f"how well {called} tells the data from {foreign_name(detail)}: 50 is chance, 100 perfect",
                Key(detail["name"], score, "auroc"), True,
            )  # fmt: skip
    yield from _gradients(content)


def _verdicts(content: dict[str, Any], group: str, title: str, meaning: str, key: Key) -> Iterator[Column]:
    """A column of shares right, and those of the other two verdicts on stochastic models."""
    drawn = "; the mean over the draws of a stochastic model" if stochastic(content) else ""
    yield Column(group, title, meaning + drawn, key, True)
    for variant, by, means in VERDICTS:
        yield Column(group, f"{title}, {by}", f"{meaning}: {means}", key._replace(variant=variant), True)


def _attacked(content: dict[str, Any]) -> Iterator[Column]:
    attacks = of_kind(content, "attack")
    for norm, eps in headline_eps(content):
        group = f"Attacked, {NORMS[norm]} ≤ {eps_text(norm, eps)}"
        for detail in attacks:
            if worst_name(detail["norm"], detail["eps"]) != worst_name(norm, eps):
                continue
            if "surrogates" in detail:
                meaning = f"share still right at pictures made for {', '.join(detail['cascade'])}"
            elif detail["cascade"]:
                meaning = f"share still right after the cascade {', '.join(detail['cascade'])}"
            elif detail["attack"] == "noise":
                meaning = "share still right under random noise of this size, which no search has chosen"
            else:
                continue
            title = detail["name"].removesuffix(f"-{ThreatModel(norm, eps).slug}")
            yield from _verdicts(content, group, title, meaning, Key(detail["name"], "", "robust_accuracy"))
        yield from _verdicts(
            content, group, "worst case",
            "share right under every attack of this norm up to this size, and with none",
            Key(worst_name(norm, eps), "", "robust_accuracy"),
        )  # fmt: skip


def _guarded(content: dict[str, Any]) -> Iterator[Column]:
    for detail in of_kind(content, "detected"):
        norm, by = detail["norm"], DETECTED_BY[detail["score"]]
        yield Column(
            f"Attacked, {NORMS[norm]} ≤ {eps_text(norm, detail['eps'])}", f"may reject, by {by}",
            f"share right and accepted, where {100 * detail['rejection']:g} % of clean pictures are rejected "
            f"by {by}, and no picture was found that is wrong and accepted, by attacks that know of it",
            Key(detail["name"], "", "guarded_accuracy"), True,
        )  # fmt: skip


def _gradients(content: dict[str, Any]) -> Iterator[Column]:
    for detail in of_kind(content, "gradients"):
        for sigma in detail["sigmas"]:
            yield Column(
                "Guidance gain", sigma_text(sigma),
                "by how much the class gradient, added to a reference denoiser, "
                "lowers its error at noise of that σ, in pixel units; below 0 it does harm",
                Key(detail["name"], f"sigma-{sigma:g}", "guidance_gain"), True,
            )  # fmt: skip
        for sigma in sorted(detail["sigmas"])[:1]:
            yield Column(
                "Denoising, dB", sigma_text(sigma),
                "how far the model's own denoiser beats the best linear "
                "one at noise of that σ, in pixel units; empty for models without a denoiser",
                Key(detail["name"], f"sigma-{sigma:g}", "psnr_gain"), True,
            )  # fmt: skip


def headline_eps(content: dict[str, Any]) -> list[tuple[Any, float]]:
    """The (norm, eps) of the main table: the data's own of the protocol, and those of cascades.

    A norm of which neither was run is shown at its largest eps.
    """
    settings = of_data(content["protocol"].get("data") or {}, content["data"]["name"]) or {}
    attacks = of_kind(content, "attack")
    run = {worst_name(d["norm"], d["eps"]): (d["norm"], d["eps"]) for d in attacks}
    chosen = {worst_name(d["norm"], d["eps"]) for d in attacks if d["cascade"]}
    chosen |= {worst_name(*pair) for pair in settings.get("eps", {}).items()} & run.keys()
    for norm in {norm for norm, _ in run.values()} - {run[name][0] for name in chosen}:
        chosen.add(worst_name(*max(pair for pair in run.values() if pair[0] == norm)))
    return sorted((run[name] for name in chosen), key=lambda pair: (list(NORMS).index(pair[0]), pair[1]))


def tested(content: dict[str, Any]) -> list[Key]:
    """What models are compared in: the main table, and every accuracy and gain as a whole."""
    keys = [column.key for column in columns(content)]
    for metric in content["metrics"]:
        key = Key(metric["evaluation"], metric["variant"], metric["metric"])
        if key.metric in ("guidance_gain", "psnr_gain") or (
            key.metric.endswith("accuracy") and not key.variant
        ):
            keys.append(key)
    return list(dict.fromkeys(keys))
