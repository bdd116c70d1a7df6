"""The columns of the main table: which metrics it shows, under which titles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robustgen.config import of_data
from robustgen.metrics.comparisons import Key
from robustgen.metrics.verdicts import MAJORITY, WORST, WORST_OF
from robustgen.report.content import Summary, key_of, of_kind, stochastic
from robustgen.report.formats import DETECTED_BY, NORMS, foreign_name, sigma_text, threat_text
from robustgen.threat import ThreatModel, worst_name
from robustgen.types import Norm

SCORES = (
    ("energy", "energy", "the energy score (logsumexp of the logits; log p(x) of some joint models only)"),
    ("log_prob", "log p(x)", "the model's own log p(x) (empty for models without one)"),
)
"""The scores of foreign pictures that the main table shows: variant, title, meaning."""

VERDICTS = (
    (MAJORITY, "majority", "classified correctly in most draws of a stochastic model"),
    (WORST, f"worst of {WORST_OF}", f"classified correctly in all of {WORST_OF} draws of a stochastic model"),
)
"""The accuracies of a stochastic model beside the mean over its draws: variant, title, meaning."""


@dataclass(frozen=True)
class Column:
    """A column: its group in the upper header, its title, its meaning in plain words, and its metric."""

    group: str
    title: str
    meaning: str
    key: Key
    higher_is_better: bool


def columns(content: Summary) -> list[Column]:
    """The columns for which any model has a number, in reading order."""
    present = {key_of(m) for m in content["metrics"]}
    return [column for column in _candidates(content) if column.key in present]


def _candidates(content: Summary) -> Iterator[Column]:
    yield from _verdicts(
        content, "Clean", "accuracy", "share of the unperturbed test pictures that are classified correctly",
        Key("clean", "", "accuracy"),
    )  # fmt: skip
    yield from _attacked(content)
    yield from _guarded(content)
    yield Column(
        "Corrupted", "accuracy",
        "accuracy on corrupted pictures (noise, brightness, contrast, ...), the mean over types and "
        "severities",
        Key("corruptions", "all", "corruption_accuracy"), True,
    )  # fmt: skip
    yield Column(
        "Calibrated", "ECE ↓", "expected calibration error on clean pictures: the mean gap between "
        "confidence and accuracy; lower is better", Key("clean", "", "ece"), False,
    )  # fmt: skip
    for detail in of_kind(content, "ood"):
        for score, title, called in SCORES:
            yield Column(
                "Foreign, AUROC", f"{foreign_name(detail)} by {title}",
                f"how well {called} separates the data from {foreign_name(detail)}: 50 is chance",
                Key(detail["name"], score, "auroc"), True,
            )  # fmt: skip
    yield from _gradients(content)


def _verdicts(content: Summary, group: str, title: str, meaning: str, key: Key) -> Iterator[Column]:
    """A column of accuracies, and those by majority and by worst of K for stochastic models."""
    drawn = "; for a stochastic model the mean over its draws" if stochastic(content) else ""
    yield Column(group, title, meaning + drawn, key, True)
    for variant, by, means in VERDICTS:
        yield Column(group, f"{title}, {by}", f"{meaning}: {means}", key._replace(variant=variant), True)


def _attacked(content: Summary) -> Iterator[Column]:
    attacks = of_kind(content, "attack")
    for norm, eps in headline_eps(content):
        group = f"Attacked, {threat_text(norm, eps)}"
        for detail in attacks:
            if worst_name(detail["norm"], detail["eps"]) != worst_name(norm, eps):
                continue
            stages = detail.get("cascade") or []
            if "surrogates" in detail:
                meaning = f"share classified correctly at pictures made for other models, {', '.join(stages)}"
            elif stages:
                meaning = f"share classified correctly after the attacks {', '.join(stages)} in turn"
            elif detail["attack"] == "noise":
                meaning = "share classified correctly under random noise of this size, without any search"
            else:
                continue
            title = detail["name"].removesuffix(f"-{ThreatModel(norm, eps).slug}")
            yield from _verdicts(content, group, title, meaning, Key(detail["name"], "", "robust_accuracy"))
        yield from _verdicts(
            content, group, "worst case",
            "share classified correctly under every attack of this norm up to this size, and without attack",
            Key(worst_name(norm, eps), "", "robust_accuracy"),
        )  # fmt: skip


def _guarded(content: Summary) -> Iterator[Column]:
    for detail in of_kind(content, "detected"):
        norm, by = detail["norm"], DETECTED_BY[detail["score"]]
        yield Column(
            f"Attacked, {threat_text(norm, detail['eps'])}", f"with a detector by {by}",
            "share for which the clean picture is accepted and classified correctly, and no attack, among "
            "them one that knows of the detector, found a picture that is accepted and misclassified; the "
            f"detector rejects {100 * detail['rejection']:g} % of clean pictures by {by}",
            Key(detail["name"], "", "guarded_accuracy"), True,
        )  # fmt: skip


def _gradients(content: Summary) -> Iterator[Column]:
    for detail in of_kind(content, "gradients"):
        for sigma in detail["sigmas"]:
            yield Column(
                "Guidance gain", sigma_text(sigma),
                "by how much the squared error of a reference denoiser falls when the class gradient is "
                "added to its output, at noise of this σ in pixel units; below 0 the gradient does harm",
                Key(detail["name"], f"sigma-{sigma:g}", "guidance_gain"), True,
            )  # fmt: skip
        for sigma in sorted(detail["sigmas"])[:1]:
            yield Column(
                "Denoising, dB", sigma_text(sigma),
                "PSNR of the model's own denoiser minus that of the Wiener filter, the best linear denoiser, "
                "at noise of this σ in pixel units; empty for models without a denoiser",
                Key(detail["name"], f"sigma-{sigma:g}", "psnr_gain"), True,
            )  # fmt: skip


def headline_eps(content: Summary) -> list[tuple[Norm, float]]:
    """The (norm, eps) of the main table: those that the protocol sets for the data, and those of cascades.

    A norm without either is shown at its largest eps.
    """
    settings = of_data(content["protocol"].get("data") or {}, content["data"]["name"]) or {}
    attacks = of_kind(content, "attack")
    run = {worst_name(d["norm"], d["eps"]): (d["norm"], d["eps"]) for d in attacks}
    chosen = {worst_name(d["norm"], d["eps"]) for d in attacks if d.get("cascade")}
    chosen |= {worst_name(*pair) for pair in settings.get("eps", {}).items()} & run.keys()
    for norm in {norm for norm, _ in run.values()} - {run[name][0] for name in chosen}:
        chosen.add(worst_name(*max(pair for pair in run.values() if pair[0] == norm)))
    return sorted((run[name] for name in chosen), key=lambda pair: (list(NORMS).index(pair[0]), pair[1]))


def tested(content: Summary) -> list[Key]:
    """What models are compared in: the columns of the main table, and every accuracy and gain."""
    keys = [column.key for column in columns(content)]
    for metric in content["metrics"]:
        key = key_of(metric)
        if key.metric in ("guidance_gain", "psnr_gain") or (
            key.metric.endswith("accuracy") and not key.variant
        ):
            keys.append(key)
    return list(dict.fromkeys(keys))
