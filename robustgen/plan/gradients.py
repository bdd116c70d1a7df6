"""Evaluations of gradients: against a reference denoiser, and whether an attack can believe them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from robustgen import data
from robustgen.classifiers import fingerprint_model, load
from robustgen.classifiers.base import Denoiser
from robustgen.config import ClimbsSpec, ExplainedSpec, GradientsSpec
from robustgen.errors import UserError, unknown_name
from robustgen.evaluation import load_data
from robustgen.perturb import Readout
from robustgen.plan.planning import Planning
from robustgen.registry import ZooModel, load_card, model_folders
from robustgen.threat import ThreatModel
from robustgen.types import LEAST_LEVELS, Kind


def guidance(planning: Planning, spec: GradientsSpec) -> None:
    """Guidance gain and denoising at the data's sigmas."""
    sigmas = planning.settings.sigmas
    if not _has_reference(planning, "gradients", sigmas):
        return
    train = planning.at_hand("gradients", planning.split("train"))
    if train is None:  # nothing to fit the Wiener filter on
        return

    def readout(reference: Denoiser) -> Readout:
        from robustgen.classifiers.denoisers import Wiener
        from robustgen.gradients import Guidance

        return Guidance(sigmas, reference, Wiener(train.images), spec.pictures)

    _guided(planning, "gradients", sigmas, readout, {"wiener": train.fingerprint})


def efficiency(planning: Planning) -> None:
    """The gain over the data's sweep of sigmas, of which there must be enough for an integral."""
    sweep = planning.settings.sweep

    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Sweep

        return Sweep(sweep, reference)

    if 0 < len(sweep) < LEAST_LEVELS:
        raise UserError(
            "an integral over noise levels needs more of them",
            where=f"the protocol's data.{planning.dataset.name}.sweep",
            expected=f"{LEAST_LEVELS} levels or more",
            got=len(sweep),
        )
    _guided(planning, "efficiency", sorted(sweep), readout)


def explained(planning: Planning, spec: ExplainedSpec) -> None:
    """The nearest wrong pictures, at the lowest, the middle and the highest of the data's sigmas."""
    if len(planning.dataset.class_names) < 2:
        planning.refuse("explained", "where there is one class, no picture is wrong")
        return
    ordered = sorted(planning.settings.sigmas)
    three = [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if len(ordered) > 2 else ordered

    numbers = _numbers(planning)
    if numbers == []:
        reason = f"the reference denoiser does not know the classes of {planning.dataset.name!r}"
        planning.refuse("explained", reason)
        return

    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Explained

        return Explained(three, reference, spec.pictures, numbers=numbers)

    _guided(planning, "explained", three, readout, {"denoiser_classes": numbers} if numbers else {})


def _numbers(planning: Planning) -> list[int] | None:
    """What the reference denoiser calls the classes: None where they are its first ones, [] where it does
    not know them.

    Some of a set's classes are numbered anew, and their reference may be of the whole set.
    """
    dataset, denoiser = planning.dataset, planning.settings.denoiser
    folder = model_folders().get(denoiser or "")
    if folder is None or not data.holds_out(dataset):
        return None
    known, (whole, _, chosen) = load_card(folder).data, dataset.source.partition(":")
    if known == dataset.source:
        return None
    if known != whole:
        return []
    found = data.class_numbers(load_data(whole, "test", planning.root), chosen)
    return None if found == [*range(len(found))] else found


def _has_reference(planning: Planning, name: str, sigmas: list[float]) -> bool:
    """Whether the protocol names a reference denoiser and sigmas for these data; refused without."""
    if planning.settings.denoiser and sigmas:
        return True
    where = planning.dataset.name
    planning.refuse(name, f"the protocol names no reference denoiser, or no sigmas, for {where!r}")
    return False


def _guided(
    planning: Planning, name: Kind, sigmas: list[float], readout: Callable[[Denoiser], Readout],
    more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """A readout against the protocol's reference denoiser at noise levels."""
    if not _has_reference(planning, name, sigmas):
        return
    denoiser, folders = str(planning.settings.denoiser), model_folders()
    if denoiser not in folders:
        raise unknown_name("model", denoiser, folders, where="the protocol's reference denoiser")
    folder = folders[denoiser]

    @cache
    def reference() -> Denoiser:
        found = load(folder)
        if not isinstance(found, Denoiser):
            raise UserError(
                "the protocol's reference denoiser denoises nothing by itself", where=f"denoiser: {denoiser}",
                expected="a model of the family denoiser", got=f"one of family {load_card(folder).family}",
                remedy="'robustgen list models' names them",
            )  # fmt: skip
        return found

    fingerprint = fingerprint_model(ZooModel(folder.name, folder))
    detail = {"sigmas": sigmas, "denoiser": denoiser, "denoiser_fingerprint": fingerprint} | (more or {})
    reference()  # a mistake of the protocol's is one of the whole run, and none of a chunk
    planning.add(name, name, detail, readouts=cache(lambda: (readout(reference()),)))


def probes(planning: Planning) -> None:
    """What gradients are like at the pictures."""

    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.probes import Probes

        return Probes(threat)

    _diagnosis(planning, "probes", {}, readout)


def climbs(planning: Planning, spec: ClimbsSpec) -> None:
    """What gradients are like where an attack comes to."""

    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.climbs import Climbs

        return Climbs(threat, spec.every)

    _diagnosis(planning, "climbs", {"every": spec.every}, readout)


def _diagnosis(
    planning: Planning, name: Kind, more: dict[str, Any], readout: Callable[[ThreatModel], Readout]
) -> None:
    """A look at the gradients within the data's ball, in Linf where the data has an eps for it."""
    eps = planning.settings.eps
    if not eps:
        planning.refuse(name, f"the protocol has no eps for {planning.dataset.name!r}")
        return
    norm = "linf" if "linf" in eps else next(iter(eps))
    threat = ThreatModel(norm, eps[norm])
    detail = {"norm": norm, "eps": threat.eps, **more}
    planning.add(name, name, detail, readouts=lambda: (readout(threat),))
