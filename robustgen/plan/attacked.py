"""Evaluations under attack: on the verdict, by other models' pictures, on a score, around a detector."""

from __future__ import annotations

from functools import cache
from typing import Any

from robustgen import attacks
from robustgen.attacks.detector import DetectorAware, DetectorScore, LazyDetector
from robustgen.attacks.fixed import FixedSteps
from robustgen.attacks.surrogates import Transfer
from robustgen.classifiers import fingerprint_model, load
from robustgen.classifiers.base import Classifier
from robustgen.config import AttackSpec, DetectedSpec, FixedSpec, TransferSpec
from robustgen.errors import UserError
from robustgen.perturb import Attack
from robustgen.plan.planning import Planning
from robustgen.registry import ZooModel, resolve_all, slug
from robustgen.threat import ThreatModel


def attack(planning: Planning, spec: AttackSpec) -> None:
    """An attack by name, at each of its eps."""
    settings, data = planning.settings, planning.dataset.name
    if spec.eps is None and spec.norm not in settings.eps:
        raise UserError(
            f"the protocol has no eps for {spec.norm} on {data!r}",
            expected=f"data.{data}.eps.{spec.norm}, or eps at the attack {spec.attack!r}",
        )
    for eps in spec.eps or [settings.eps[spec.norm] * scale for scale in spec.scales]:
        made = attacks.build(spec, ThreatModel(spec.norm, eps))
        _add(planning, made, {"thorough": made.thorough})


def transfer(planning: Planning, spec: TransferSpec) -> None:
    """The zoo's models that one reads by default, a network call a picture each, attack for the others."""
    eps = planning.eps(spec.norm, spec.eps, "transfer")
    if eps is None:
        return
    try:
        cheap = [ref for ref in resolve_all([], planning.dataset.name) if isinstance(ref, ZooModel)]
    except UserError as error:
        planning.refuse("transfer", error.what)
        return

    @cache
    def surrogates() -> dict[str, Classifier]:
        loaded = {ref.name: load(ref.folder) for ref in cheap}
        return {name: model for name, model in loaded.items() if isinstance(model, Classifier)}

    names = tuple(ref.name for ref in cheap)
    made = Transfer(ThreatModel(spec.norm, eps), surrogates, names, steps=spec.steps)
    _add(planning, made, {"surrogates": {ref.name: fingerprint_model(ref) for ref in cheap}})


def _add(planning: Planning, made: Attack, more: dict[str, Any]) -> None:
    planning.add(attacks.evaluation_name(made), "attack", made.detail() | more, perturbation=made)


def fixed(planning: Planning, spec: FixedSpec) -> None:
    """Own pictures under a fixed number of steps and, of a score, each matched foreign set as well."""
    eps = planning.eps(spec.norm, spec.eps, f"fixed-{spec.objective}")
    if eps is None:
        return
    made = FixedSteps(ThreatModel(spec.norm, eps), spec.objective, spec.steps)
    name = attacks.evaluation_name(made)
    detail = {"objective": spec.objective, "norm": spec.norm, "eps": eps, "steps": spec.steps}
    planning.add(name, "fixed", {**detail, "of": "clean"}, perturbation=made)
    if spec.objective == "label":
        return
    familiar = FixedSteps(made.threat, spec.objective, spec.steps, foreign=True)
    for e in [e for e in planning.evaluations if e.kind == "ood" and "confounded" not in e.detail]:
        described = {**detail, "of": e.name, "fingerprint": e.detail["fingerprint"]}
        planning.add(
            f"{e.name}-{name}", "fixed", described, perturbation=familiar, data=e.data, size=e.size,
            foreign=e.foreign,
        )  # fmt: skip


def detected(planning: Planning, spec: DetectedSpec) -> None:
    """An attack on model and detector together; what both say of its pictures is stored in their rows."""
    eps = planning.eps(spec.norm, spec.eps, f"detected-{spec.score}")
    if eps is None:
        return
    pictures = planning.split("calibration")
    found = planning.at_hand(f"detected-{spec.score}", pictures)
    if found is None:  # nothing to fit the threshold on
        return
    fitted = LazyDetector(spec.score, spec.rejection, pictures)
    made = DetectorAware(ThreatModel(spec.norm, eps), fitted, n_iter=spec.n_iter)
    changed = {"r": (spec.rejection, 0.05), "i": (spec.n_iter, 100)}
    marks = "".join(f"-{letter}{value:g}" for letter, (value, usual) in changed.items() if value != usual)
    about = {"score": spec.score, "rejection": spec.rejection, "calibration": found.fingerprint}
    name = f"detected-{slug(spec.score)}{marks}-{made.threat.slug}"
    planning.add(name, "detected", made.detail() | about, perturbation=made, scores=(DetectorScore(fitted),))
