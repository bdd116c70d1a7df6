"""Plans attacks: on the prediction, by transfer, with a fixed number of steps, and aware of a detector."""

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
from robustgen.plan.builder import PlanBuilder
from robustgen.registry import ZooModel, resolve_all, slug
from robustgen.threat import ThreatModel


def add_attack(builder: PlanBuilder, spec: AttackSpec) -> None:
    """An attack by name, an evaluation for each of its eps."""
    settings, data = builder.settings, builder.dataset.name
    if spec.eps is None and spec.norm not in settings.eps:
        raise UserError(
            f"the protocol has no eps for {spec.norm} on {data!r}",
            expected=f"data.{data}.eps.{spec.norm}, or eps at the attack {spec.attack!r}",
        )
    for eps in spec.eps or [settings.eps[spec.norm] * scale for scale in spec.scales]:
        built = attacks.build(spec, ThreatModel(spec.norm, eps))
        _add(builder, built, {"thorough": built.thorough})


def add_transfer(builder: PlanBuilder, spec: TransferSpec) -> None:
    """Pictures made for the zoo's other models of these data, those that run without being named."""
    eps = builder.eps_or_refuse(spec.norm, spec.eps, "transfer")
    if eps is None:
        return
    try:
        cheap = [ref for ref in resolve_all([], builder.dataset.name) if isinstance(ref, ZooModel)]
    except UserError as error:
        builder.refuse("transfer", error.what)
        return

    @cache
    def surrogates() -> dict[str, Classifier]:
        loaded = {ref.name: load(ref.folder) for ref in cheap}
        return {name: model for name, model in loaded.items() if isinstance(model, Classifier)}

    names = tuple(ref.name for ref in cheap)
    attack = Transfer(ThreatModel(spec.norm, eps), surrogates, names, steps=spec.steps)
    _add(builder, attack, {"surrogates": {ref.name: fingerprint_model(ref) for ref in cheap}})


def _add(builder: PlanBuilder, attack: Attack, more: dict[str, Any]) -> None:
    builder.add(attacks.evaluation_name(attack), "attack", attack.detail() | more, perturbation=attack)


def add_fixed(builder: PlanBuilder, spec: FixedSpec) -> None:
    """A fixed number of steps on the clean pictures and, against a score, on each matched foreign set too."""
    eps = builder.eps_or_refuse(spec.norm, spec.eps, f"fixed-{spec.objective}")
    if eps is None:
        return
    attack = FixedSteps(ThreatModel(spec.norm, eps), spec.objective, spec.steps)
    name = attacks.evaluation_name(attack)
    detail = {"objective": spec.objective, "norm": spec.norm, "eps": eps, "steps": spec.steps}
    builder.add(name, "fixed", {**detail, "of": "clean"}, perturbation=attack)
    if spec.objective == "label":
        return
    on_foreign = FixedSteps(attack.threat, spec.objective, spec.steps, foreign=True)
    for ood in [e for e in builder.evaluations if e.kind == "ood" and "confounded" not in e.detail]:
        builder.add(
            f"{ood.name}-{name}", "fixed",
            {**detail, "of": ood.name, "fingerprint": ood.detail["fingerprint"]},
            perturbation=on_foreign, data=ood.data, size=ood.size, foreign=ood.foreign,
        )  # fmt: skip


def add_detected(builder: PlanBuilder, spec: DetectedSpec) -> None:
    """An attack that evades the classifier and a detector; the rows store what both say of its pictures."""
    eps = builder.eps_or_refuse(spec.norm, spec.eps, f"detected-{spec.score}")
    if eps is None:
        return
    load_calibration = builder.split_loader("calibration")
    calibration = builder.load_or_refuse(f"detected-{spec.score}", load_calibration)
    if calibration is None:  # nothing to fit the threshold on
        return
    fitted = LazyDetector(spec.score, spec.rejection, load_calibration)
    attack = DetectorAware(ThreatModel(spec.norm, eps), fitted, n_iter=spec.n_iter)
    changed = {"r": (spec.rejection, 0.05), "i": (spec.n_iter, 100)}
    marks = "".join(f"-{letter}{value:g}" for letter, (value, usual) in changed.items() if value != usual)
    detail = {"score": spec.score, "rejection": spec.rejection, "calibration": calibration.fingerprint}
    name = f"detected-{slug(spec.score)}{marks}-{attack.threat.slug}"
    builder.add(
        name, "detected", attack.detail() | detail, perturbation=attack, scores=(DetectorScore(fitted),)
    )
