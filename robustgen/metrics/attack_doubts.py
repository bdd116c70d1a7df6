"""Doubts about attacks, from stored rows: signs that an attack is weaker than it looks."""

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

STAGE_GAP = 0.002  # as AutoAttack's own check: Square alone should find next to nothing
ANYTHING_GOES = 0.5  # in Linf, every picture can become plain grey
AUDIT_GAP = 0.005
EPS_GAP = 0.02
NOISE, TRANSFER = "noise", "transfer"
BY_CHANCE = 0.05  # p, above which the verdicts of draws differ by their draws alone
TARGETS, FEWER_IN_L1 = 9, 5
"""How many classes targeted attacks aim at where an option does not say so; the second is APGD-T's in L1."""
# Stages that do without the model's own gradients, and what they take instead.
WITHOUT_GRADIENTS = {
    "square": "Square, which uses no gradients,",
    "estimated": "The attack by gradients that are estimated from the logits",
    "bpda": "The attack through the model's stand-in for its backward pass",
}


def attack_doubts(run: Run) -> Iterator[Flag]:
    """The flags of a run's attacks."""
    parts = (
        _budget,
        _taken_back,
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
    """The attacks that seek something on this model: not random noise, nor pictures made elsewhere."""
    for evaluation, rows in run.of_kind("attack"):
        if not is_attack(evaluation.detail, NOISE, TRANSFER, ADDED):
            yield evaluation, rows


def _targeted(evaluation: Evaluation) -> bool:
    """Whether an attack has the stages that aim at one class after another, which every audit repeats."""
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
                f"{outside} of {len(rows)} pictures left the attack's own budget, or are no numbers, and do "
                "not count as they are, which makes the attack weaker than it looks. Mend the attack.",
            )  # fmt: skip


def _taken_back(run: Run) -> Iterator[Flag]:
    """A search stops at a picture that breaks a sample; if the verdict there is right, nobody looked on."""
    for evaluation, rows in run.of_kind("attack"):
        found = int((pd.notna(rows.broken_by) & rows.correct).sum())
        if found > STAGE_GAP * len(rows) and not rows.stochastic:
            yield Flag(
                run.model, evaluation.name, "hits_taken_back", "warning",
                f"{found} of {len(rows)} samples were broken in the search and are right in the verdict. The "
                "model's answers hang on more than the picture, such as its place in the batch: mend that "
                "('robustgen check MODEL'), and read the robust accuracy as an upper bound.",
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
                "the attack does not work on this model. See whether its gradients are usable ('robustgen "
                "check MODEL').",
            )  # fmt: skip


def _weaker_than_noise(run: Run) -> Iterator[Flag]:
    """Random noise in a ball that is no larger breaks more than a search does."""
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
                    "no search at all. Its robust accuracy says nothing; look for masked gradients.",
                )  # fmt: skip


def _fewer(a: Rows, b: Rows) -> bool:
    """Whether fewer are right in ``a`` than in ``b``: of a stochastic model, by more than by chance."""
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    return only_a < only_b and (not b.stochastic or mcnemar(only_a, only_b) < BY_CHANCE)


def _not_monotone(run: Run) -> Iterator[Flag]:
    """What an attack finds in a ball lies in every larger one; where it is not found there, it failed."""
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
                    f"{regained} of {len(before)} samples that {small.name} broke are right again in the "
                    "larger ball: the attack loses its way there. Take more steps or restarts, and read the "
                    "worst case over eps, which counts what was found in smaller balls.",
                )  # fmt: skip


def _masking(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("attack"):
        cascade = evaluation.detail.get("cascade") or []
        for stage, what in WITHOUT_GRADIENTS.items():
            caught = int((rows.broken_by == stage).sum())
            if stage in cascade[1:] and caught > STAGE_GAP * len(rows):
                yield Flag(
                    run.model, evaluation.name, "masked_gradients", "warning",
                    f"{what} broke {caught} of {len(rows)} samples that the attacks with gradients had "
                    "left. A sign of masked gradients: try an adaptive attack, and read the robust "
                    "accuracy as an upper bound.",
                )  # fmt: skip


def _transferred(run: Run) -> Iterator[Flag]:
    """Pictures made for other models break what no search on this one did, in a ball that is no smaller."""
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
                f"{broken} of {int(left.sum())} samples that the searches on this model left are broken by "
                "pictures made for other models. Its gradients mislead the searches: try joint-adaptive, and "
                "read the robust accuracy as an upper bound.",
            )  # fmt: skip


def _lost(before: list[Rows], after: Rows) -> tuple[Array, Array]:
    """Who is right in all of ``before``, and who of these no longer is in ``after``, all of the same samples:
    of a stochastic model, those alone whose shares of right draws differ by more than chance makes them."""
    left = np.logical_and.reduce([rows.correct for rows in before])
    least = np.min([rows.share for rows in before], 0)
    return left, left & ~after.correct & surely_fell(least, after.share, after.draws)


def _undefended(run: Run) -> Iterator[Flag]:
    """All pictures can become the same one, on which a model gives one class: no more can be right than
    the largest class has."""
    for evaluation, rows in _searches(run):
        if evaluation.detail["norm"] != "linf" or evaluation.detail["eps"] < ANYTHING_GOES:
            continue
        largest = np.bincount(rows.labels).max() / len(rows)
        if wilson(int(rows.correct.sum()), len(rows)).low > largest:
            yield Flag(
                run.model, evaluation.name, "attack_fails", "error",
                f"{rows.correct.mean():.0%} right at an eps that can turn every picture grey, where no more "
                f"than {largest:.0%} can be, the share of the largest class: the attack fails, and smaller "
                "eps say little. Look for masked gradients.",
            )  # fmt: skip


def _audit(run: Run) -> Iterator[Flag]:
    """Work that was saved: how many survivors an attack in full breaks. Where draws are by chunk, of a
    stochastic model or in an outside attack, none was."""
    low = run.spec["kernels"].get("precision") == "bf16"
    for evaluation, rows in _searches(run):
        early = not evaluation.detail.get("thorough", True)
        spared = (low or early) and not (rows.seeded_by == "chunk").any()
        if not spared or not _targeted(evaluation):
            continue
        found = rows.broken_by == AUDIT
        k, m = int(found.sum()), int(np.isin(rows.ids, evaluation.audited).sum())
        if not m:
            continue
        saved, remedies = [], []
        if early:
            saved.append("Jobs that were not going to arrive were ended early")
            remedies.append("the attack's option 'thorough: true'")
        if low:
            saved.append("gradients were taken in bfloat16" if early else "Gradients were taken in bfloat16")
            remedies.append("--precision float32")
        yield Flag(
            run.model, evaluation.name, "audit", "warning" if k > AUDIT_GAP * m else "info",
            f"{k} of {m} audited survivors broken by the attack in full, upper bound "
            f"{100 * wilson(k, m).high:.2g} % (of the 95 % interval). {' and '.join(saved)}; "
            f"{' and '.join(remedies)} would spare nothing.",
        )  # fmt: skip


def _added(run: Run) -> Iterator[Flag]:
    """Pictures from elsewhere that break what no attack of the run did."""
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
                f"{broken} of {int(left.sum())} samples that the run's own attacks left are broken by "
                f"pictures of {unbroken(evaluation.detail['added']['file'])}. The worst case counts them; "
                "read the own attacks' figures as too high, and find out what they missed.",
            )  # fmt: skip


def _few_classes(run: Run) -> Iterator[Flag]:
    """Losses and targets that a model has too few classes for."""
    classes = run.spec["model"]["num_classes"]
    for evaluation, _ in _searches(run):
        wanted = _aims_at(run, evaluation)
        if not _targeted(evaluation) or classes > wanted:
            continue
        margin = "; the targeted DLR loss needs 4 classes and gave way to the margin" if classes < 4 else ""
        yield Flag(
            run.model, evaluation.name, "few_classes", "info",
            f"With {classes} classes there are fewer to aim at than the {wanted} asked for{margin}. Nothing "
            "is left out, since every other class is aimed at.",
        )  # fmt: skip


def _aims_at(run: Run, evaluation: Evaluation) -> int:
    """How many classes an attack was to aim at, by the options of its line of the protocol."""
    options: dict[str, Any] = {}
    name = ""
    for spec in run.spec["protocol"]["evaluations"]:
        asked = str(spec.get("attack", ""))
        if len(asked) > len(name) and is_attack(evaluation.detail, asked):  # of fab and fab-t the longer
            name, options = asked, spec["options"]
    all_nine = evaluation.detail["norm"] != "l1" or is_attack(evaluation.detail, "fab-t", "autoattack-plus")
    return int(options.get("n_target_classes", TARGETS if all_nine else FEWER_IN_L1))
