"""Evaluations of pictures that no model has been looked at for: clean, corrupted and foreign ones."""

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
from robustgen.plan.planning import Planning
from robustgen.registry import slug
from robustgen.scores import SCORES, Score


def choose_scores(planning: Planning, protocol: Protocol) -> None:
    """The scores that a protocol's ood evaluations ask for; none where there are no foreign sets."""
    specs = [s for s in protocol.evaluations if isinstance(s, OodSpec)] if planning.settings.foreign else []
    names = list(dict.fromkeys(name for spec in specs for name in spec.scores))
    chosen = list(dict.fromkeys(name for spec in specs for name in spec.detectors))
    detectors.check(chosen)
    scores: list[Score] = [SCORES[name]() for name in names]
    scored: dict[str, Any] = {"scores": names} if names else {}
    library = detectors.library_version()
    if chosen and library is None:
        planning.refuse("detectors", "the detectors need pytorch-ood: pip install 'robustgen[pytorch-ood]'")
    elif chosen:
        train = planning.split("train")
        found = planning.at_hand("detectors", train)
        if found is not None:
            scores.append(detectors.Detectors(chosen, train))
            scored |= {"detectors": chosen, "pytorch_ood": library, "fitted_on": found.fingerprint}
    planning.scores, planning.scored = tuple(scores), scored


def clean(planning: Planning) -> None:
    """The test pictures, and the calibration split for a fitted temperature."""
    planning.add("clean", "clean", planning.scored, scores=planning.scores)
    load = planning.split("calibration")
    found = planning.at_hand("calibration", load)
    if found is None:
        return
    detail = {"fingerprint": found.fingerprint}
    planning.add("calibration", "calibration", detail, split="calibration", size=len(found))


def corruptions(planning: Planning, spec: CorruptionsSpec) -> None:
    """Corruptions made here; of CIFAR-10 the published ones, where the data root has them."""
    dataset = planning.dataset
    for name in spec.types:
        found = published.PublishedFile(None)
        if dataset.name == "cifar10" and name in published.MD5:
            found = published.find_published(name, data.data_root(planning.root), dataset.labels)
        reason = None if found.file else refusal(name, dataset.shape)
        if reason is not None:
            planning.refuse(name, reason)
            continue
        if found.reason is not None:
            planning.refuse(f"{name}, published", found.reason)
        for severity in spec.severities:
            detail: dict[str, Any] = {"type": name, "severity": severity}
            if dataset.name == "cifar10" and ":" not in name:
                detail["pictures"] = f"published, md5 {published.MD5[name]}" if found.file else "regenerated"
            perturbation = (
                PublishedCorruption(found.file, severity) if found.file else Corruption(name, severity)
            )
            planning.add(evaluation_name(name, severity), "corruption", detail, perturbation=perturbation)


def foreign(planning: Planning) -> None:
    """Each set in the data's size and codec, and beside it the raw one where that differs; the classes
    that the data leave out, where they do."""
    dataset, root = planning.dataset, planning.root
    held_out = [data.HELD_OUT] if data.holds_out(dataset) else []
    for source in [*planning.settings.foreign, *held_out]:
        load = partial(load_foreign, source, dataset.source, root)
        found = planning.at_hand(f"ood-{slug(source)}", load)
        if found is None:
            continue
        for suffix, part in (("", found.matched), ("-raw", found.raw)):
            if part is None:
                continue
            if part.shape == dataset.shape and torch.equal(part.images, dataset.images):
                planning.refuse(
                    f"ood-{slug(source)}{suffix}", "these foreign pictures are the data themselves"
                )
                continue
            detail = {"provenance": part.provenance, "fingerprint": part.fingerprint}
            if suffix:
                detail["confounded"] = f"{dataset.name} came through {dataset.codec}, and this set did not"
            load_part = partial(_part, source, dataset.source, root, bool(suffix))
            planning.add(
                f"ood-{slug(part.name)}{suffix}", "ood", detail | planning.scored, data=source,
                size=len(part), scores=planning.scores, foreign=load_part,
            )  # fmt: skip


def _part(source: str, familiar: str, root: Path | None, raw: bool) -> Dataset:
    found = load_foreign(source, familiar, root)
    return found.raw if raw and found.raw is not None else found.matched
