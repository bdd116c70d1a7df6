"""Flags about attacks, from stored rows: signs that an attack is too weak to be believed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from robustgen.audit import AUDIT, TARGETED_STAGES
from robustgen.metrics.intervals import mcnemar, wilson
from robustgen.metrics.rows import Array, Evaluation, Rows, Run, aligned, is_attack
from robustgen.metrics.verdicts import surely_fell
from robustgen.types import ADDED, Flag, unbroken

# Shares of the samples above which a flag is raised.
STAGE_GAP = 0.002  # as in AutoAttack's own check: Square should break next to nothing after the other stages
AUDIT_GAP = 0.005
EPS_GAP = 0.02
GREY_EPS = 0.5  # in Linf, every picture can become plain grey from here on
NOISE, TRANSFER = "noise", "transfer"
BY_CHANCE = 0.05  # p of McNemar's test from which on verdicts of a stochastic model may differ by chance
TARGETS, FEWER_IN_L1 = 9, 5
"""The default number of target classes of targeted attacks; FEWER_IN_L1 is APGD-T's in L1."""
# The stages of a cascade that do not use the model's own gradients, as the subject of a sentence.
WITHOUT_GRADIENTS = {
    "square": "Square, which uses no gradients,",
    "estimated": "The attack with gradients estimated from the logits",
    "bpda": "The attack with the model's surrogate backward pass (BPDA)",
}


def attack_doubts(run: Run) -> Iterator[Flag]:
    """The flags of a run's attacks."""
    parts = (
        _budget,
        _hits_taken_back,
        _easier_than_clean,
        _weaker_than_noise,
        _not_monotone,
        _masking,
        _transferred,
        _undefended,
        _audit,
        _few_classes,
        _added,
    )
    for part in parts:
        yield from part(run)


def _searches(run: Run) -> Iterator[tuple[Evaluation, Rows]]:
    """The attacks that search on this model itself: not random noise, nor pictures made for other models."""
    for evaluation, rows in run.of_kind("attack"):
        if not is_attack(evaluation.detail, NOISE, TRANSFER, ADDED):
            yield evaluation, rows


def _targeted(evaluation: Evaluation) -> bool:
    """Whether an attack is or has a targeted stage, which every audit repeats."""
    detail = evaluation.detail
    return bool(set(TARGETED_STAGES) & set(detail.get("cascade") or [])) or is_attack(
        detail, *TARGETED_STAGES
    )


def _budget(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("attack"):
        outside = int((rows.within_budget == False).sum())  # noqa: E712 (None is neither)
        if is_attack(evaluation.detail, ADDED):
            given = min(evaluation.detail[ADDED].get("n", len(rows)), len(rows))
            if outside > given / 2:  # no doubt about the worst case, which they can only lower
                yield Flag(
                    run.model, evaluation.name, "outside_budget", "info",
                    f"{outside} of {given} added pictures lay outside this budget and were projected, "
                    "so the verdicts are about other pictures. Add pictures made for this norm and size.",
                )  # fmt: skip
        elif outside:
            yield Flag(
                run.model, evaluation.name, "outside_budget", "warning",
                f"{outside} of {len(rows)} perturbed pictures are outside the attack's own budget or not "
                "finite, and were projected or replaced before the verdict, which makes the attack weaker "
                "than it should be. Fix the attack.",
            )  # fmt: skip


def _hits_taken_back(run: Run) -> Iterator[Flag]:
    """A search stops at the first picture that breaks a sample: if the verdict there is correct, the sample
    counts as robust although the search ended early."""
    for evaluation, rows in run.of_kind("attack"):
        found = int((pd.notna(rows.broken_by) & rows.correct).sum())
        if found > STAGE_GAP * len(rows) and not rows.stochastic:
            yield Flag(
                run.model, evaluation.name, "hits_taken_back", "warning",
                f"{found} of {len(rows)} samples were misclassified in the search, but are classified "
                "correctly in the verdict on the same picture. The model's output depends on more than the "
                "picture, for example on its position in the batch: fix that ('robustgen check MODEL'), and "
                "read the robust accuracy as an upper bound.",
            )  # fmt: skip


def _easier_than_clean(run: Run) -> Iterator[Flag]:
    clean = run.first("clean")
    if clean is None:
        return
    for evaluation, rows in _searches(run):
        before, after = aligned(clean, rows)
        if _fewer(before, after):
            yield Flag(
                run.model, evaluation.name, "easier_than_clean", "error",
                f"{after.correct.sum()} of {len(after)} right under attack, {before.correct.sum()} without: "
                "the attack does not work on this model. Check whether its gradients are usable ('robustgen "
                "check MODEL').",
            )  # fmt: skip


def _weaker_than_noise(run: Run) -> Iterator[Flag]:
    """Random noise of the same or a smaller size breaks more samples than a search."""
    for noise, noisy in run.of_kind("attack"):
        if not is_attack(noise.detail, NOISE):
            continue
        for evaluation, rows in _searches(run):
            by_noise, by_attack = aligned(noisy, rows)
            no_smaller = (
                evaluation.detail["norm"] == noise.detail["norm"]
                and evaluation.detail["eps"] >= noise.detail["eps"]
            )
            if no_smaller and _fewer(by_noise, by_attack):
                yield Flag(
                    run.model, evaluation.name, "weaker_than_noise", "error",
                    f"{by_attack.correct.sum()} of {len(by_attack)} right under this attack, "
                    f"{by_noise.correct.sum()} under random noise ({noise.name}): the attack is weaker than "
                    "random noise. Do not use its robust accuracy; look for masked gradients.",
                )  # fmt: skip


def _fewer(a: Rows, b: Rows) -> bool:
    """Whether fewer are correct in ``a`` than in ``b``; for a stochastic model, by more than chance."""
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    return only_a < only_b and (not b.stochastic or mcnemar(only_a, only_b) < BY_CHANCE)


def _not_monotone(run: Run) -> Iterator[Flag]:
    """A picture within one eps is also within every larger one: an attack that breaks a sample only at the
    smaller eps failed at the larger."""
    series: dict[tuple[str, str], list[tuple[Evaluation, Rows]]] = {}
    for evaluation, rows in _searches(run):
        series.setdefault((evaluation.detail["attack"], evaluation.detail["norm"]), []).append(
            (evaluation, rows)
        )
    for several in series.values():
        several.sort(key=lambda pair: pair[0].detail["eps"])
        for (small, smaller), (large, larger) in pairwise(several):
            before, after = aligned(smaller, larger)
            surely = surely_fell(after.share, before.share, before.draws)
            regained = int((~before.correct & after.correct & surely).sum())
            if regained > EPS_GAP * len(before):
                yield Flag(
                    run.model, large.name, "not_monotone_in_eps", "warning",
                    f"{regained} of {len(before)} samples that {small.name} broke are right again at this "
                    "larger eps, so the search fails there. Use more steps or restarts, and read the worst "
                    "case, which also counts what was found at smaller eps.",
                )  # fmt: skip


def _masking(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("attack"):
        cascade = evaluation.detail.get("cascade") or []
        for stage, what in WITHOUT_GRADIENTS.items():
            caught = int((rows.broken_by == stage).sum())
            if stage in cascade[1:] and caught > STAGE_GAP * len(rows):
                yield Flag(
                    run.model, evaluation.name, "masked_gradients", "warning",
                    f"{what} broke {caught} of {len(rows)} samples that the gradient attacks before it had "
                    "not broken, a sign of masked gradients. Try an adaptive attack (joint-adaptive), and "
                    "read the robust accuracy as an upper bound.",
                )  # fmt: skip


def _transferred(run: Run) -> Iterator[Flag]:
    """Pictures made for other models break what no search on this model broke at their eps or more."""
    for evaluation, rows in run.of_kind("attack"):
        norm, eps = evaluation.detail["norm"], evaluation.detail["eps"]
        own = [r for e, r in _searches(run) if e.detail["norm"] == norm and e.detail["eps"] >= eps]
        if not is_attack(evaluation.detail, TRANSFER) or not own:
            continue
        after, *before = aligned(rows, *own)
        left, lost = _lost(before, after)
        broken = int(lost.sum())
        if broken > STAGE_GAP * len(after):
            yield Flag(
                run.model, evaluation.name, "transfer_beats_search", "warning",
                f"{broken} of {int(left.sum())} samples that no search on this model broke are broken by "
                "pictures made for other models. The model's gradients mislead the searches: try "
                "joint-adaptive, and read the robust accuracy as an upper bound.",
            )  # fmt: skip


def _lost(before: list[Rows], after: Rows) -> tuple[Array, Array]:
    """The samples that are correct in all of ``before``, and those of them broken in ``after``; bool (n,).

    All Rows are of the same samples. For a stochastic model a sample is broken if its share of correct draws
    fell by more than chance.
    """
    left = np.logical_and.reduce([rows.correct for rows in before])
    least = np.min([rows.share for rows in before], 0)
    return left, left & ~after.correct & surely_fell(least, after.share, after.draws)


def _undefended(run: Run) -> Iterator[Flag]:
    """At this eps all pictures can become the same one, for which the model has one answer: accuracy is at
    most the share of the largest class."""
    for evaluation, rows in _searches(run):
        if evaluation.detail["norm"] != "linf" or evaluation.detail["eps"] < GREY_EPS:
            continue
        largest = np.bincount(rows.labels).max() / len(rows)
        if wilson(int(rows.correct.sum()), len(rows)).low > largest:
            yield Flag(
                run.model, evaluation.name, "attack_fails", "error",
                f"{rows.correct.mean():.0%} right at an eps that can turn every picture grey, where the "
                f"share of the largest class, {largest:.0%}, is the most that is possible: the attack "
                "fails. Robust accuracy at smaller eps is not reliable either; look for masked gradients.",
            )  # fmt: skip


def _audit(run: Run) -> Iterator[Flag]:
    """Where an attack saved work, how many of its survivors the full attack breaks. Attacks seeded by chunk
    (on stochastic models, and outside attacks) save none."""
    bf16 = run.spec["kernels"].get("precision") == "bf16"
    for evaluation, rows in _searches(run):
        early = not evaluation.detail.get("thorough", True)
        saved_work = (bf16 or early) and not (rows.seeded_by == "chunk").any()
        if not saved_work or not _targeted(evaluation):
            continue
        found = rows.broken_by == AUDIT
        k, m = int(found.sum()), int(np.isin(rows.ids, evaluation.audited).sum())
        if not m:
            continue
        saved, remedies = [], []
        if early:
            saved.append("Searches that seemed hopeless were ended early")
            remedies.append("the attack's option 'thorough: true'")
        if bf16:
            saved.append("gradients were taken in bfloat16" if early else "Gradients were taken in bfloat16")
            remedies.append("--precision float32")
        yield Flag(
            run.model, evaluation.name, "audit", "warning" if k > AUDIT_GAP * m else "info",
            f"{k} of {m} audited survivors are broken by the full attack, at most "
            f"{100 * wilson(k, m).high:.2g} % (upper bound of the 95 % interval). {' and '.join(saved)} to "
            f"save time; use {' and '.join(remedies)} to run the attack in full.",
        )  # fmt: skip


def _added(run: Run) -> Iterator[Flag]:
    """Pictures added to the run break samples that none of its own attacks broke."""
    for evaluation, rows in run.of_kind("attack"):
        if not is_attack(evaluation.detail, ADDED):
            continue
        norm, eps = evaluation.detail["norm"], evaluation.detail["eps"]
        own = [own for e, own in _searches(run) if e.detail["norm"] == norm and e.detail["eps"] <= eps]
        known = [*own, *(clean for _, clean in run.of_kind("clean"))]
        if not known:
            continue
        after, *before = aligned(rows, *known)
        left, lost = _lost(before, after)
        broken = int(lost.sum())
        if broken:
            yield Flag(
                run.model, evaluation.name, "broken_elsewhere", "warning",
                f"{broken} of {int(left.sum())} samples that the run's own attacks did not break are broken "
                f"by the pictures of {unbroken(evaluation.detail['added']['file'])}. The worst case counts "
                "them; the robust accuracies of the run's own attacks are too high, so find out what they "
                "missed.",
            )  # fmt: skip


def _few_classes(run: Run) -> Iterator[Flag]:
    """A model has fewer classes than a targeted attack has targets."""
    classes = run.spec["model"]["num_classes"]
    for evaluation, _ in _searches(run):
        wanted = _aims_at(run, evaluation)
        if not _targeted(evaluation) or classes > wanted:
            continue
        margin = "; the targeted DLR loss needs 4 classes, so the margin was used" if classes < 4 else ""
        yield Flag(
            run.model, evaluation.name, "few_classes", "info",
            f"With {classes} classes there are fewer target classes than the {wanted} asked for{margin}. "
            "Nothing is missing, since every other class is a target.",
        )  # fmt: skip


def _aims_at(run: Run, evaluation: Evaluation) -> int:
    """How many target classes the protocol asks an attack for."""
    options: dict[str, Any] = {}
    name = ""
    for spec in run.spec["protocol"]["evaluations"]:
        asked = str(spec.get("attack", ""))
        if len(asked) > len(name) and is_attack(evaluation.detail, asked):  # fab-t is also a fab
            name, options = asked, spec["options"]
    all_nine = evaluation.detail["norm"] != "l1" or is_attack(evaluation.detail, "fab-t", "autoattack-plus")
    return int(options.get("n_target_classes", TARGETS if all_nine else FEWER_IN_L1))
