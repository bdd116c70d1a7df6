"""Plans evaluations whose pictures do not depend on the model: clean, corrupted and foreign ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from robustgen import data, detectors
from robustgen.config import CorruptionsSpec, OodSpec, Protocol
from robustgen.corruptions import Corruption, evaluation_name, published, refusal
from robustgen.corruptions.published import PublishedCorruption
from robustgen.data import Dataset
from robustgen.evaluation import load_foreign
from robustgen.plan.builder import PlanBuilder
from robustgen.registry import slug
from robustgen.scores import SCORES, Score


def choose_scores(builder: PlanBuilder, protocol: Protocol) -> None:
    """Set the scores that the protocol's ood evaluations ask for; none if the data have no foreign sets."""
    specs = [s for s in protocol.evaluations if isinstance(s, OodSpec)] if builder.settings.foreign else []
    names = list(dict.fromkeys(name for spec in specs for name in spec.scores))
    chosen = list(dict.fromkeys(name for spec in specs for name in spec.detectors))
    detectors.check(chosen)
    scores: list[Score] = [SCORES[name]() for name in names]
    scored: dict[str, Any] = {"scores": names} if names else {}
    library = detectors.library_version()
    if chosen and library is None:
        builder.refuse("detectors", "the detectors need pytorch-ood: pip install 'robustgen[pytorch-ood]'")
    elif chosen:
        load_train = builder.split_loader("train")
        train = builder.load_or_refuse("detectors", load_train)
        if train is not None:
            scores.append(detectors.Detectors(chosen, load_train))
            scored |= {"detectors": chosen, "pytorch_ood": library, "fitted_on": train.fingerprint}
    builder.scores, builder.scored = tuple(scores), scored


def add_clean(builder: PlanBuilder) -> None:
    """The test split as it is, and the calibration split, on which a temperature is fitted."""
    builder.add("clean", "clean", builder.scored, scores=builder.scores)
    calibration = builder.load_or_refuse("calibration", builder.split_loader("calibration"))
    if calibration is None:
        return
    detail = {"fingerprint": calibration.fingerprint}
    builder.add("calibration", "calibration", detail, split="calibration", size=len(calibration))


def add_corruptions(builder: PlanBuilder, spec: CorruptionsSpec) -> None:
    """Corruptions by name and severity; on CIFAR-10 CIFAR-10-C's own files, if the data root has them."""
    dataset = builder.dataset
    for name in spec.types:
        found = published.PublishedFile(None)
        if dataset.name == "cifar10" and name in published.MD5:
            found = published.find_published(name, data.data_root(builder.root), dataset.labels)
        reason = None if found.file else refusal(name, dataset.shape)
        if reason is not None:
            builder.refuse(name, reason)
            continue
        if found.reason is not None:
            builder.refuse(f"{name}, published", found.reason)
        for severity in spec.severities:
            detail: dict[str, Any] = {"type": name, "severity": severity}
            if dataset.name == "cifar10" and ":" not in name:
                detail["pictures"] = f"published, md5 {published.MD5[name]}" if found.file else "regenerated"
            perturbation = (
                PublishedCorruption(found.file, severity) if found.file else Corruption(name, severity)
            )
            builder.add(evaluation_name(name, severity), "corruption", detail, perturbation=perturbation)


def add_foreign(builder: PlanBuilder) -> None:
    """Each foreign set in the data's size and codec, and unchanged (``-raw``) if that differs.

    A data set of some classes only (NAME:CLASSES) has its other classes as a foreign set too.
    """
    dataset, root = builder.dataset, builder.root
    held_out = [data.HELD_OUT] if data.holds_out(dataset) else []
    for source in [*builder.settings.foreign, *held_out]:
        load = partial(load_foreign, source, dataset.source, root)
        found = builder.load_or_refuse(f"ood-{slug(source)}", load)
        if found is None:
            continue
        for suffix, part in (("", found.matched), ("-raw", found.raw)):
            if part is None:
                continue
            if part.shape == dataset.shape and torch.equal(part.images, dataset.images):
                builder.refuse(
                    f"ood-{slug(source)}{suffix}", "these foreign pictures are the data themselves"
                )
                continue
            detail = {"provenance": part.provenance, "fingerprint": part.fingerprint}
            if suffix:
                detail["confounded"] = f"{dataset.name} came through {dataset.codec}, and this set did not"
            load_part = partial(_part, source, dataset.source, root, bool(suffix))
            builder.add(
                f"ood-{slug(part.name)}{suffix}", "ood", detail | builder.scored, data=source,
                size=len(part), scores=builder.scores, foreign=load_part,
            )  # fmt: skip


def _part(source: str, familiar: str, root: Path | None, raw: bool) -> Dataset:
    found = load_foreign(source, familiar, root)
    return found.raw if raw and found.raw is not None else found.matched
