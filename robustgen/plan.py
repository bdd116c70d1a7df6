"""From a protocol and a data set to evaluations: what is measured, and what was refused and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from robustgen import attacks, data, detectors
from robustgen.attacks.detector import DetectorAware, Fitted, Judged
from robustgen.attacks.ood import Fixed
from robustgen.attacks.own import OwnAttack
from robustgen.attacks.surrogates import Transfer
from robustgen.classifiers import fingerprint_model, load
from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.config import (
    AttackSpec,
    ClimbsSpec,
    DataSettings,
    DetectedSpec,
    EvaluationSpec,
    FixedSpec,
    OodSpec,
    Protocol,
    TransferSpec,
)
from robustgen.corruptions import Corruption, evaluation_name, published, refusal
from robustgen.corruptions.published import PublishedCorruption
from robustgen.data import Dataset
from robustgen.errors import UnknownNameError, UserError, unknown_name
from robustgen.evaluation import Evaluation, Plan, load_data, load_foreign
from robustgen.perturb import Identity, Readout
from robustgen.registry import ZooModel, model_folders, resolve_all, slug
from robustgen.scores import SCORES, Score
from robustgen.threat import ThreatModel

LEVELS = 12
"""The fewest noise levels that an integral is taken over."""


def plan(protocol: Protocol, dataset: Dataset, root: Path | None = None) -> Plan:
    """Turn a protocol's specifications into evaluations of a data set's test split."""
    settings = protocol.settings(dataset.name)
    planned = Plan([], [])
    reading = _reading(planned, protocol, settings, dataset, root)
    # of the foreign sets that are planned before
    for spec in sorted(protocol.evaluations, key=lambda spec: spec.kind == "fixed"):
        with _told_where(protocol, spec.kind):
            _plan_one(planned, spec, reading, settings, dataset, root)
    names = [evaluation.name for evaluation in planned.evaluations]
    if len(set(names)) < len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"protocol {protocol.name!r} has an evaluation twice", where="its evaluations",
            expected="each name once", got=", ".join(double), remedy="leave one of them out",
        )  # fmt: skip
    return planned


@contextmanager
def _told_where(protocol: Protocol, kind: str) -> Iterator[None]:
    """What is wrong with an evaluation is said with its place in the protocol."""
    try:
        yield
    except UserError as error:
        where = f"the evaluation {kind!r} of the protocol {protocol.name!r}"
        error.complete(where=where, remedy="mend the protocol")
        raise


def _plan_one(
    planned: Plan, spec: EvaluationSpec, reading: _Reading, settings: DataSettings, dataset: Dataset,
    root: Path | None,
) -> None:  # fmt: skip
    match spec.kind:
        case "clean":
            _plan_clean(planned, reading, dataset, root)
        case "attack":
            _plan_attack(planned, spec, dataset, settings)
        case "transfer":
            _plan_transfer(planned, spec, dataset, settings)
        case "corruptions":
            _plan_corruptions(planned, spec.types, spec.severities, dataset, root)
        case "ood":
            _plan_foreign(planned, reading, settings.foreign, dataset, root)
        case "fixed":
            _plan_fixed(planned, spec, dataset, settings)
        case "detected":
            _plan_detected(planned, spec, dataset, settings, root)
        case "gradients":
            _plan_gradients(planned, settings, spec.pictures, dataset, root)
        case "efficiency":
            _plan_efficiency(planned, settings, dataset)
        case "explained":
            _plan_explained(planned, settings, spec.pictures, dataset)
        case "probes":
            _plan_probes(planned, settings, dataset)
        case "climbs":
            _plan_climbs(planned, spec, settings, dataset)


class _Reading(NamedTuple):
    """What is read of own and foreign pictures beside what the logits say, and how run.json says it."""

    scores: tuple[Score, ...]
    detail: dict[str, Any]


def _reading(
    planned: Plan, protocol: Protocol, settings: DataSettings, dataset: Dataset, root: Path | None
) -> _Reading:
    """The scores that a protocol's ood evaluations ask for; none where there are no foreign sets."""
    specs = [s for s in protocol.evaluations if isinstance(s, OodSpec)] if settings.foreign else []
    names = list(dict.fromkeys(name for spec in specs for name in spec.scores))
    chosen = list(dict.fromkeys(name for spec in specs for name in spec.detectors))
    detectors.check(chosen)
    scores: list[Score] = [SCORES[name]() for name in names]
    detail: dict[str, Any] = {"scores": names} if names else {}
    library = detectors.library_version()
    if chosen and library is None:
        reason = "the detectors need pytorch-ood: pip install 'robustgen[pytorch-ood]'"
        planned.refused.append({"evaluation": "detectors", "reason": reason})
    elif chosen:
        train = partial(load_data, dataset.source, "train", None, root)
        try:
            train()
        except UserError as error:  # nothing to fit them on; the rest is measured all the same
            planned.refused.append({"evaluation": "detectors", "reason": error.what})
        else:
            scores.append(detectors.Detectors(chosen, train))
            detail |= {"detectors": chosen, "pytorch_ood": library}
    return _Reading(tuple(scores), detail)


def _plan_clean(planned: Plan, reading: _Reading, dataset: Dataset, root: Path | None) -> None:
    planned.evaluations.append(
        Evaluation(
            "clean", "clean", dataset.name, "test", len(dataset), reading.detail,
            perturbation=Identity(), scores=reading.scores,
        )
    )  # fmt: skip
    try:
        pictures = load_data(dataset.source, "calibration", None, root)
    except UserError as error:
        planned.refused.append({"evaluation": "calibration", "reason": error.what})
        return
    planned.evaluations.append(
        Evaluation(
            "calibration", "calibration", dataset.name, "calibration", len(pictures),
            {"fingerprint": pictures.fingerprint}, perturbation=Identity(),
        )
    )  # fmt: skip


def _plan_attack(planned: Plan, spec: AttackSpec, dataset: Dataset, settings: DataSettings) -> None:
    if spec.eps is None and spec.norm not in settings.eps:
        raise UserError(
            f"the protocol has no eps for {spec.norm} on {dataset.name!r}",
            expected=f"data.{dataset.name}.eps.{spec.norm}, or eps at the attack {spec.attack!r}",
        )
    for eps in spec.eps or [settings.eps[spec.norm] * scale for scale in spec.scales]:
        attack = attacks.build(spec, ThreatModel(spec.norm, eps))
        cascade = list(attacks.stages(attack))
        detail = {"attack": attack.name, "norm": spec.norm, "eps": eps, "cascade": cascade}
        if isinstance(attack, OwnAttack):
            detail["code"] = attack.code
        detail["thorough"] = getattr(attack, "thorough", True)
        planned.evaluations.append(
            Evaluation(
                attacks.evaluation_name(attack), "attack", dataset.name, "test", len(dataset), detail,
                perturbation=attack,
            )
        )  # fmt: skip


def _plan_transfer(planned: Plan, spec: TransferSpec, dataset: Dataset, settings: DataSettings) -> None:
    """The zoo's models that one reads by default, a network call a picture each, attack for the others."""
    eps = spec.eps or settings.eps.get(spec.norm)
    try:
        cheap = [ref for ref in resolve_all([], dataset.name) if isinstance(ref, ZooModel)]
    except UserError as error:
        planned.refused.append({"evaluation": "transfer", "reason": error.what})
        return
    if eps is None:
        reason = f"the protocol has no eps for {spec.norm} on {dataset.name!r}"
        planned.refused.append({"evaluation": "transfer", "reason": reason})
        return

    @cache
    def surrogates() -> dict[str, Classifier]:
        loaded = {ref.name: load(ref.folder) for ref in cheap}
        return {name: model for name, model in loaded.items() if isinstance(model, Classifier)}

    names = tuple(ref.name for ref in cheap)
    attack = Transfer(ThreatModel(spec.norm, eps), surrogates, names, steps=spec.steps)
    detail = {
        "attack": attack.name, "norm": spec.norm, "eps": eps, "cascade": list(attacks.stages(attack)),
        "surrogates": {ref.name: fingerprint_model(ref) for ref in cheap},
    }  # fmt: skip
    planned.evaluations.append(
        Evaluation(
            attacks.evaluation_name(attack), "attack", dataset.name, "test", len(dataset), detail,
            perturbation=attack,
        )
    )  # fmt: skip


def _plan_corruptions(
    planned: Plan, types: list[str], severities: list[int], dataset: Dataset, root: Path | None
) -> None:
    """Corruptions made here; of CIFAR-10 the published ones, where the data root has them."""
    for name in types:
        found = published.Found(None)
        if dataset.name == "cifar10" and name in published.MD5:
            found = published.find(name, data.data_root(root), dataset.labels)
        reason = None if found.file else refusal(name, dataset.shape)
        if reason is not None:
            planned.refused.append({"evaluation": name, "reason": reason})
            continue
        if found.reason is not None:
            planned.refused.append({"evaluation": f"{name}, published", "reason": found.reason})
        for severity in severities:
            detail: dict[str, Any] = {"type": name, "severity": severity}
            if dataset.name == "cifar10" and ":" not in name:
                detail["pictures"] = f"published, md5 {published.MD5[name]}" if found.file else "regenerated"
            planned.evaluations.append(
                Evaluation(
                    evaluation_name(name, severity), "corruption", dataset.name, "test", len(dataset), detail,
                    perturbation=PublishedCorruption(found.file, severity)
                    if found.file
                    else Corruption(name, severity),
                )
            )  # fmt: skip


def _plan_foreign(
    planned: Plan, reading: _Reading, foreign: list[str], dataset: Dataset, root: Path | None
) -> None:
    """Each set in the data's size and codec, and beside it the raw one where that differs."""
    for source in foreign:
        try:
            found = load_foreign(source, dataset.source, root)
        except UnknownNameError:
            raise
        except UserError as error:  # not at hand here and now, or not to be made of this data
            planned.refused.append({"evaluation": f"ood-{slug(source)}", "reason": error.what})
            continue
        for suffix, pictures in (("", found.matched), ("-raw", found.raw)):
            if pictures is None:
                continue
            detail = {"provenance": pictures.provenance, "fingerprint": pictures.fingerprint}
            if suffix:
                detail["confounded"] = f"{dataset.name} came through {dataset.codec}, and this set did not"
            load = partial(_foreign_part, source, dataset.source, root, bool(suffix))
            planned.evaluations.append(
                Evaluation(
                    f"ood-{slug(pictures.name)}{suffix}", "ood", source, "test", len(pictures),
                    detail | reading.detail, perturbation=Identity(), scores=reading.scores, foreign=load,
                )
            )  # fmt: skip


def _foreign_part(source: str, familiar: str, root: Path | None, raw: bool) -> Dataset:
    found = load_foreign(source, familiar, root)
    return found.raw if raw and found.raw is not None else found.matched


def _plan_fixed(planned: Plan, spec: FixedSpec, dataset: Dataset, settings: DataSettings) -> None:
    """Own pictures under a fixed number of steps and, of a score, each matched foreign set as well."""
    eps = spec.eps or settings.eps.get(spec.norm)
    if eps is None:
        reason = f"the protocol has no eps for {spec.norm} on {dataset.name!r}"
        planned.refused.append({"evaluation": f"fixed-{spec.objective}", "reason": reason})
        return
    attack = Fixed(ThreatModel(spec.norm, eps), spec.objective, spec.steps)
    name = attacks.evaluation_name(attack)
    detail = {"objective": spec.objective, "norm": spec.norm, "eps": eps, "steps": spec.steps}
    planned.evaluations.append(
        Evaluation(
            name, "fixed", dataset.name, "test", len(dataset), {**detail, "of": "clean"}, perturbation=attack
        )
    )
    if spec.objective == "label":
        return
    familiar = Fixed(attack.threat, spec.objective, spec.steps, foreign=True)
    sets = [e for e in planned.evaluations if e.kind == "ood" and "confounded" not in e.detail]
    for e in sets:
        described = {**detail, "of": e.name, "fingerprint": e.detail["fingerprint"]}
        planned.evaluations.append(
            Evaluation(
                f"{e.name}-{name}", "fixed", e.data, "test", e.size, described,
                perturbation=familiar, foreign=e.foreign,
            )
        )  # fmt: skip


def _plan_detected(
    planned: Plan, spec: DetectedSpec, dataset: Dataset, settings: DataSettings, root: Path | None
) -> None:
    """An attack on model and detector together; both verdicts on its pictures are stored in their rows."""
    eps = spec.eps or settings.eps.get(spec.norm)
    pictures = partial(load_data, dataset.source, "calibration", None, root)
    reason = None
    if eps is None:
        reason = f"the protocol has no eps for {spec.norm} on {dataset.name!r}"
    else:
        try:
            pictures()
        except UserError as error:  # nothing to fit the threshold on
            reason = error.what
    if eps is None or reason is not None:
        planned.refused.append({"evaluation": f"detected-{spec.score}", "reason": reason or ""})
        return
    fitted = Fitted(spec.score, spec.rejection, pictures)
    attack = DetectorAware(ThreatModel(spec.norm, eps), fitted, n_iter=spec.n_iter)
    changed = {"r": (spec.rejection, 0.05), "i": (spec.n_iter, 100)}
    marks = "".join(f"-{letter}{value:g}" for letter, (value, usual) in changed.items() if value != usual)
    detail = {
        "attack": attack.name, "norm": spec.norm, "eps": eps, "cascade": list(attack.names),
        "score": spec.score, "rejection": spec.rejection, "calibration": pictures().fingerprint,
    }  # fmt: skip
    planned.evaluations.append(
        Evaluation(
            f"detected-{slug(spec.score)}{marks}-{attack.threat.slug}", "detected", dataset.name, "test",
            len(dataset), detail, perturbation=attack, scores=(Judged(fitted),),
        )
    )  # fmt: skip


def _plan_gradients(
    planned: Plan, settings: DataSettings, pictures: int, dataset: Dataset, root: Path | None
) -> None:
    def readout(reference: Denoiser) -> Readout:
        from robustgen.classifiers.denoisers import Wiener
        from robustgen.gradients import Guidance

        train = load_data(dataset.source, "train", None, root)
        return Guidance(settings.sigmas, reference, Wiener(train.images), pictures)

    _plan_guided(planned, "gradients", settings, settings.sigmas, dataset, readout)


def _plan_efficiency(planned: Plan, settings: DataSettings, dataset: Dataset) -> None:
    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Sweep

        return Sweep(settings.sweep, reference)

    if 0 < len(settings.sweep) < LEVELS:
        raise UserError(
            "an integral over noise levels needs more of them",
            where=f"the protocol's data.{dataset.name}.sweep",
            expected=f"{LEVELS} levels or more",
            got=len(settings.sweep),
        )
    _plan_guided(planned, "efficiency", settings, sorted(settings.sweep), dataset, readout)


def _plan_explained(planned: Plan, settings: DataSettings, pictures: int, dataset: Dataset) -> None:
    ordered = sorted(settings.sigmas)
    three = [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if len(ordered) > 2 else ordered

    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Explained

        return Explained(three, reference, pictures)

    _plan_guided(planned, "explained", settings, three, dataset, readout)


def _plan_guided(
    planned: Plan, name: str, settings: DataSettings, sigmas: list[float], dataset: Dataset,
    readout: Callable[[Denoiser], Readout],
) -> None:  # fmt: skip
    """A readout against the protocol's reference denoiser at noise levels."""
    if not settings.denoiser or not sigmas:
        reason = f"the protocol names no reference denoiser, or no sigmas, for {dataset.name!r}"
        planned.refused.append({"evaluation": name, "reason": reason})
        return
    folders = model_folders()
    if settings.denoiser not in folders:
        raise unknown_name("model", settings.denoiser, folders, where="the protocol's reference denoiser")
    folder = folders[settings.denoiser]

    @cache
    def readouts() -> tuple[Readout, ...]:
        reference = load(folder)
        if not isinstance(reference, Denoiser):
            raise UserError(
                "the reference denoiser is none", where=folder, expected="a model of family denoiser"
            )
        return (readout(reference),)

    detail = {
        "sigmas": sigmas,
        "denoiser": settings.denoiser,
        "denoiser_fingerprint": fingerprint_model(ZooModel(folder.name, folder)),
    }
    planned.evaluations.append(
        Evaluation(
            name, name, dataset.name, "test", len(dataset), detail,
            perturbation=Identity(), readouts=readouts,
        )
    )  # fmt: skip


def _plan_probes(planned: Plan, settings: DataSettings, dataset: Dataset) -> None:
    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.probes import Probes

        return Probes(threat)

    _plan_diagnosis(planned, "probes", {}, settings, dataset, readout)


def _plan_climbs(planned: Plan, spec: ClimbsSpec, settings: DataSettings, dataset: Dataset) -> None:
    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.climbs import Climbs

        return Climbs(threat, spec.every)

    _plan_diagnosis(planned, "climbs", {"every": spec.every}, settings, dataset, readout)


def _plan_diagnosis(
    planned: Plan, name: str, detail: dict[str, Any], settings: DataSettings, dataset: Dataset,
    readout: Callable[[ThreatModel], Readout],
) -> None:  # fmt: skip
    """A look at the gradients within the data's ball, in Linf where the data has an eps for it."""
    if not settings.eps:
        reason = f"the protocol has no eps for {dataset.name!r}"
        planned.refused.append({"evaluation": name, "reason": reason})
        return
    norm = "linf" if "linf" in settings.eps else next(iter(settings.eps))
    threat = ThreatModel(norm, settings.eps[norm])
    planned.evaluations.append(
        Evaluation(
            name, name, dataset.name, "test", len(dataset), {"norm": norm, "eps": threat.eps, **detail},
            perturbation=Identity(), readouts=lambda: (readout(threat),),
        )
    )  # fmt: skip
