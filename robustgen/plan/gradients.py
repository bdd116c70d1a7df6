"""Plans readouts of gradients: against a reference denoiser, and whether attacks can rely on them."""

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
from robustgen.plan.builder import PlanBuilder
from robustgen.registry import ZooModel, load_card, model_folders
from robustgen.threat import ThreatModel
from robustgen.types import MIN_LEVELS, Kind


def add_guidance(builder: PlanBuilder, spec: GradientsSpec) -> None:
    """Guidance gain and denoising errors at the data's sigmas."""
    sigmas = builder.settings.sigmas
    if not _has_reference(builder, "gradients", sigmas):
        return
    train = builder.load_or_refuse("gradients", builder.split_loader("train"))
    if train is None:  # nothing to fit the Wiener filter on
        return

    def readout(reference: Denoiser) -> Readout:
        from robustgen.classifiers.denoisers import Wiener
        from robustgen.gradients import Guidance

        return Guidance(sigmas, reference, Wiener(train.images), spec.pictures)

    _add_guided(builder, "gradients", sigmas, readout, {"wiener": train.fingerprint})


def add_efficiency(builder: PlanBuilder) -> None:
    """Guidance gain and cross-entropy over the data's sweep of sigmas, enough of them for an integral."""
    sweep = builder.settings.sweep

    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Sweep

        return Sweep(sweep, reference)

    if 0 < len(sweep) < MIN_LEVELS:
        raise UserError(
            "an integral over noise levels needs more of them",
            where=f"the protocol's data.{builder.dataset.name}.sweep",
            expected=f"{MIN_LEVELS} levels or more",
            got=len(sweep),
        )
    _add_guided(builder, "efficiency", sorted(sweep), readout)


def add_explained(builder: PlanBuilder, spec: ExplainedSpec) -> None:
    """The nearest wrong pictures, at the lowest, middle and highest of the data's sigmas."""
    if len(builder.dataset.class_names) < 2:
        builder.refuse("explained", "where there is one class, no picture is wrong")
        return
    ordered = sorted(builder.settings.sigmas)
    three = [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if len(ordered) > 2 else ordered

    numbers = _denoiser_classes(builder)
    if numbers == []:
        reason = f"the reference denoiser does not know the classes of {builder.dataset.name!r}"
        builder.refuse("explained", reason)
        return

    def readout(reference: Denoiser) -> Readout:
        from robustgen.gradients import Explained

        return Explained(three, reference, spec.pictures, numbers=numbers)

    _add_guided(builder, "explained", three, readout, {"denoiser_classes": numbers} if numbers else {})


def _denoiser_classes(builder: PlanBuilder) -> list[int] | None:
    """The reference denoiser's numbers of the data's classes; None if they are the same, [] if it has none.

    They differ for a data set of some classes (NAME:CLASSES), which numbers these from 0, if the denoiser
    was trained on the whole set.
    """
    dataset, denoiser = builder.dataset, builder.settings.denoiser
    folder = model_folders().get(denoiser or "")
    if folder is None or not data.holds_out(dataset):
        return None
    known, (whole, _, chosen) = load_card(folder).data, dataset.source.partition(":")
    if known == dataset.source:
        return None
    if known != whole:
        return []
    found = data.class_numbers(load_data(whole, "test", builder.root), chosen)
    return None if found == [*range(len(found))] else found


def _has_reference(builder: PlanBuilder, name: str, sigmas: list[float]) -> bool:
    """Whether the protocol names a reference denoiser and sigmas for these data; if not, refuse."""
    if builder.settings.denoiser and sigmas:
        return True
    where = builder.dataset.name
    builder.refuse(name, f"the protocol names no reference denoiser, or no sigmas, for {where!r}")
    return False


def _add_guided(
    builder: PlanBuilder, name: Kind, sigmas: list[float], readout: Callable[[Denoiser], Readout],
    more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Add a readout that compares with the protocol's reference denoiser at noise levels."""
    if not _has_reference(builder, name, sigmas):
        return
    denoiser, folders = str(builder.settings.denoiser), model_folders()
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
    reference()  # a mistake in the protocol must stop the run, not fail a chunk
    builder.add(name, name, detail, readouts=cache(lambda: (readout(reference()),)))


def add_probes(builder: PlanBuilder) -> None:
    """What the gradients are like at the clean pictures."""

    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.probes import Probes

        return Probes(threat)

    _add_diagnosis(builder, "probes", {}, readout)


def add_climbs(builder: PlanBuilder, spec: ClimbsSpec) -> None:
    """What the gradients are like along an attack's path."""

    def readout(threat: ThreatModel) -> Readout:
        from robustgen.attacks.climbs import Climbs

        return Climbs(threat, spec.every)

    _add_diagnosis(builder, "climbs", {"every": spec.every}, readout)


def _add_diagnosis(
    builder: PlanBuilder, name: Kind, more: dict[str, Any], readout: Callable[[ThreatModel], Readout]
) -> None:
    """Add a check of the gradients within the data's ball: in Linf if the data have an eps for it."""
    eps = builder.settings.eps
    if not eps:
        builder.refuse(name, f"the protocol has no eps for {builder.dataset.name!r}")
        return
    norm = "linf" if "linf" in eps else next(iter(eps))
    threat = ThreatModel(norm, eps[norm])
    detail = {"norm": norm, "eps": threat.eps, **more}
    builder.add(name, name, detail, readouts=lambda: (readout(threat),))
