"""From a protocol and a data set to evaluations: what is measured, and what was refused and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from robustgen import attacks, data
from robustgen.classifiers import fingerprint_model, load
from robustgen.classifiers.base import Denoiser
from robustgen.config import AttackSpec, DataSettings, Protocol
from robustgen.corruptions import Corruption, refusal
from robustgen.data import Dataset
from robustgen.errors import UnknownNameError, UserError, unknown_name
from robustgen.perturb import Identity, Perturbation, Readout
from robustgen.registry import ZooModel, model_folders, slug
from robustgen.threat import ThreatModel
from robustgen.types import Split


@dataclass(frozen=True)
class Evaluation:
    """One thing to measure: which data, what is done to it, and what is read beside the rows.

    ``detail`` says in words, for run.json, what perturbation and readouts are; the readouts are built
    when the first chunk needs them, since they may need the training split.
    """

    name: str
    kind: str
    data: str
    split: Split
    size: int
    detail: dict[str, Any]
    perturbation: Perturbation
    readouts: Callable[[], tuple[Readout, ...]] = field(default=lambda: ())

    def describe(self) -> dict[str, Any]:
        """The evaluation as it stands in run.json."""
        return {"name": self.name, "kind": self.kind, "data": self.data, "size": self.size, **self.detail}


class Plan(NamedTuple):
    """The evaluations of a protocol on a data set, and those that were refused, with the reason."""

    evaluations: list[Evaluation]
    refused: list[dict[str, str]]


def plan(protocol: Protocol, dataset: Dataset, root: Path | None = None) -> Plan:
    """Turn a protocol's specifications into evaluations of a data set's test split."""
    settings = protocol.settings(dataset.name)
    planned = Plan([], [])
    for spec in protocol.evaluations:
        match spec.kind:
            case "clean":
                _plan_clean(planned, dataset, root)
            case "attack":
                _plan_attack(planned, spec, dataset, settings)
            case "corruptions":
                _plan_corruptions(planned, spec.types, spec.severities, dataset)
            case "ood":
                _plan_foreign(planned, settings.foreign, dataset, root)
            case "gradients":
                _plan_gradients(planned, settings, spec.pictures, dataset, root)
            case "probes":
                _plan_probes(planned, settings, dataset)
    names = [evaluation.name for evaluation in planned.evaluations]
    if len(set(names)) < len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"protocol {protocol.name!r} has an evaluation twice", got=", ".join(double))
    return planned


def _plan_clean(planned: Plan, dataset: Dataset, root: Path | None) -> None:
    planned.evaluations.append(
        Evaluation("clean", "clean", dataset.name, "test", len(dataset), {}, perturbation=Identity())
    )
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
        detail["thorough"] = getattr(attack, "thorough", True)
        planned.evaluations.append(
            Evaluation(
                attacks.evaluation_name(attack), "attack", dataset.name, "test", len(dataset), detail,
                perturbation=attack,
            )
        )  # fmt: skip


def _plan_corruptions(planned: Plan, types: list[str], severities: list[int], dataset: Dataset) -> None:
    for name in types:
        reason = refusal(name, dataset.shape)
        if reason is not None:
            planned.refused.append({"evaluation": name, "reason": reason})
            continue
        for severity in severities:
            corruption = Corruption(name, severity)
            planned.evaluations.append(
                Evaluation(
                    f"{name}-{severity}", "corruption", dataset.name, "test", len(dataset),
                    {"type": name, "severity": severity},
                    perturbation=corruption,
                )
            )  # fmt: skip


def _plan_foreign(planned: Plan, foreign: list[str], dataset: Dataset, root: Path | None) -> None:
    for source in foreign:
        try:
            pictures = load_data(source, "test", dataset.shape, root)
        except UnknownNameError:
            raise
        except UserError as error:  # not at hand here and now
            planned.refused.append({"evaluation": f"ood-{slug(source)}", "reason": error.what})
            continue
        detail = {"provenance": pictures.provenance, "fingerprint": pictures.fingerprint}
        name = f"ood-{slug(pictures.name)}"
        planned.evaluations.append(
            Evaluation(name, "ood", source, "test", len(pictures), detail, perturbation=Identity())
        )


def _plan_gradients(
    planned: Plan, settings: DataSettings, pictures: int, dataset: Dataset, root: Path | None
) -> None:
    if not settings.denoiser or not settings.sigmas:
        reason = f"the protocol names no reference denoiser, or no sigmas, for {dataset.name!r}"
        planned.refused.append({"evaluation": "gradients", "reason": reason})
        return
    folders = model_folders()
    if settings.denoiser not in folders:
        raise unknown_name("model", settings.denoiser, folders, where="the protocol's reference denoiser")
    folder = folders[settings.denoiser]

    @cache
    def readouts() -> tuple[Readout, ...]:
        from robustgen.classifiers.denoisers import Wiener
        from robustgen.gradients import Guidance

        reference = load(folder)
        if not isinstance(reference, Denoiser):
            raise UserError(
                "the reference denoiser is none", where=folder, expected="a model of family denoiser"
            )
        train = load_data(dataset.source, "train", None, root)
        return (Guidance(settings.sigmas, reference, Wiener(train.images), pictures),)

    detail = {
        "sigmas": settings.sigmas,
        "denoiser": settings.denoiser,
        "denoiser_fingerprint": fingerprint_model(ZooModel(folder.name, folder)),
    }
    planned.evaluations.append(
        Evaluation(
            "gradients", "gradients", dataset.name, "test", len(dataset), detail,
            perturbation=Identity(), readouts=readouts,
        )
    )  # fmt: skip


def _plan_probes(planned: Plan, settings: DataSettings, dataset: Dataset) -> None:
    """Probes take their large step in Linf, where the data has an eps for it."""
    if not settings.eps:
        reason = f"the protocol has no eps for {dataset.name!r}"
        planned.refused.append({"evaluation": "probes", "reason": reason})
        return
    norm = "linf" if "linf" in settings.eps else next(iter(settings.eps))
    threat = ThreatModel(norm, settings.eps[norm])

    def readouts() -> tuple[Readout, ...]:
        from robustgen.attacks.probes import Probes

        return (Probes(threat),)

    planned.evaluations.append(
        Evaluation(
            "probes", "probes", dataset.name, "test", len(dataset), {"norm": norm, "eps": threat.eps},
            perturbation=Identity(), readouts=readouts,
        )
    )  # fmt: skip


@cache
def load_data(source: str, split: Split, shape: tuple[int, int, int] | None, root: Path | None) -> Dataset:
    """``data.load``, once a process: a run needs the same few splits again and again."""
    return data.load(source, split, shape=shape, root=root)
