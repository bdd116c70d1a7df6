"""Doubts about a run's numbers, each with its remedy: the flags of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from robustgen.metrics.estimates import at_ids, common_ids
from robustgen.metrics.intervals import wilson
from robustgen.metrics.rows import Run
from robustgen.types import Flag

SQUARE_GAP = 0.002  # as AutoAttack's own check: Square alone should find next to nothing
WIDE = 0.05
ANYTHING_GOES = 0.5  # in Linf, every picture can become plain grey
DEPENDENT = {
    "letters": "letters are the same few shapes in ten fonts",
    "photos": "photos are half-overlapping windows of two photographs",
}


def find_doubts(run: Run) -> list[Flag]:
    """All flags of a run, the gravest first."""
    parts = (
        _incomplete,
        _lost_tables,
        _refused,
        _chance,
        _budget,
        _easier_than_clean,
        _masking,
        _undefended,
        _chunk_seed,
        _temperature,
        _unknown_training,
        _dependent,
        _few,
    )
    found = [flag for part in parts for flag in part(run)]
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda flag: rank[flag.severity])


def _flag(
    run: Run, evaluation: str, name: str, severity: Literal["info", "warning", "error"], message: str
) -> Flag:
    return Flag(run.model, evaluation, name, severity, message)


def _incomplete(run: Run) -> Iterator[Flag]:
    for evaluation in run.evaluations.values():
        have = len(evaluation.rows) if evaluation.rows else 0
        if have >= evaluation.wanted:
            continue
        last = next((e for e in reversed(run.errors) if e["chunk"]["evaluation"] == evaluation.name), None)
        reason = f" The last failure: {str(last['error']).splitlines()[0]}." if last else ""
        yield _flag(
            run, evaluation.name, "incomplete", "error",
            f"{have} of {evaluation.wanted} evaluated.{reason} The same command tries again what is missing.",
        )  # fmt: skip


def _lost_tables(run: Run) -> Iterator[Flag]:
    """Gradients are read from a table beside the rows, which may be lost while the rows are there."""
    for evaluation, rows in run.of_kind("gradients"):
        table = run.guidance.get(evaluation.name)
        sigmas = len(evaluation.detail["sigmas"])
        counts = table["sample_id"].value_counts() if table is not None else {}
        have = sum(counts.get(i, 0) >= sigmas for i in rows.ids.tolist())
        if have < len(rows):
            yield _flag(
                run, evaluation.name, "incomplete", "error",
                f"{have} of {evaluation.wanted} evaluated: a table that was written beside the rows is lost. "
                "Run the same command again: it computes the chunks whose tables are gone.",
            )  # fmt: skip


def _refused(run: Run) -> Iterator[Flag]:
    for refusal in run.spec.get("refused", []):
        reason = str(refusal["reason"]).rstrip(".")
        yield _flag(
            run, str(refusal["evaluation"]), "left_out", "info",
            f"Left out: {reason}. Choose a protocol without it, or data that allow it.",
        )  # fmt: skip


def _chance(run: Run) -> Iterator[Flag]:
    clean, chance = run.first("clean"), 1 / run.spec["model"]["num_classes"]
    if clean is not None and wilson(int(clean.correct.sum()), len(clean)).low <= chance:
        yield _flag(
            run, "clean", "no_better_than_chance", "warning",
            f"{clean.correct.mean():.0%} right on clean pictures, where chance is {chance:.0%}. "
            "Look at the order of the classes and at the normalisation ('robustgen check MODEL').",
        )  # fmt: skip


def _budget(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("attack"):
        outside = int((rows.within_budget == False).sum())  # noqa: E712 (None is neither)
        if outside:
            yield _flag(
                run, evaluation.name, "outside_budget", "warning",
                f"{outside} of {len(rows)} pictures left the attack's own budget and were projected back "
                "before the verdict, which makes the attack weaker than it looks. Mend the attack.",
            )  # fmt: skip


def _easier_than_clean(run: Run) -> Iterator[Flag]:
    clean = run.first("clean")
    for evaluation, rows in run.of_kind("attack") if clean else ():
        ids = common_ids([clean, rows])  # type: ignore[list-item]
        before, after = at_ids(clean, ids).sum(), at_ids(rows, ids).sum()  # type: ignore[arg-type]
        if after > before:
            yield _flag(
                run, evaluation.name, "easier_than_clean", "error",
                f"{after} of {len(ids)} right under attack, {before} without: the attack does not work "
                "on this model. See whether its gradients are usable ('robustgen check MODEL').",
            )  # fmt: skip


def _masking(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("attack"):
        cascade = evaluation.detail.get("cascade") or []
        caught = int((rows.broken_by == "square").sum())
        if "square" in cascade[1:] and caught > SQUARE_GAP * len(rows):
            yield _flag(
                run, evaluation.name, "masked_gradients", "warning",
                f"Square, which uses no gradients, broke {caught} of {len(rows)} samples that the attacks "
                "with gradients had left. A sign of masked gradients: try an adaptive attack, and read "
                "the robust accuracy as an upper bound.",
            )  # fmt: skip


def _undefended(run: Run) -> Iterator[Flag]:
    chance = 1 / run.spec["model"]["num_classes"]
    for evaluation, rows in run.of_kind("attack"):
        if evaluation.detail["norm"] != "linf" or evaluation.detail["eps"] < ANYTHING_GOES:
            continue
        if wilson(int(rows.correct.sum()), len(rows)).low > chance:
            yield _flag(
                run, evaluation.name, "attack_fails", "error",
                f"{rows.correct.mean():.0%} right at an eps that can turn every picture grey, where "
                f"chance is {chance:.0%}: the attack fails, and smaller eps say little. "
                "Look for masked gradients.",
            )  # fmt: skip


def _chunk_seed(run: Run) -> Iterator[Flag]:
    named = [e.name for e, rows in run.of_kind("attack") if (rows.seeded_by == "chunk").any()]
    if named:
        yield _flag(
            run, "", "seeded_by_chunk", "info",
            f"Outside attacks draw from the global generator, seeded by chunk: {', '.join(named)}. "
            "A rerun is bit-equal; another chunk size gives other draws. Keep the protocol's chunk.",
        )  # fmt: skip


def _temperature(run: Run) -> Iterator[Flag]:
    if run.first("clean") is None:
        return
    fitted = run.first("calibration")
    if fitted is None:
        yield _flag(
            run, "calibration", "no_calibration", "warning",
            "No calibration split, so no temperature was fitted and calibration is given as is only. "
            "Use data with a calibration split.",
        )  # fmt: skip
    elif (fitted.prediction == fitted.labels).all():
        yield _flag(
            run, "calibration", "no_temperature", "info",
            f"All {len(fitted)} calibration samples are right, so the likelihood has no best "
            "temperature; 1 was taken. A larger calibration split would decide.",
        )  # fmt: skip


def _unknown_training(run: Run) -> Iterator[Flag]:
    if run.spec["model"]["family"] == "custom" and run.first("calibration") is not None:
        yield _flag(
            run, "calibration", "unknown_training", "info",
            "This model is not of the zoo, and calibration pictures may have been among its training "
            "pictures: its numbers with a fitted temperature may be too good. "
            'Train on load_data(NAME, "train") alone to be sure.',
        )  # fmt: skip


def _dependent(run: Run) -> Iterator[Flag]:
    for evaluation, _ in run.of_kind("ood"):
        why = DEPENDENT.get(evaluation.detail["data"])
        if why:
            yield _flag(
                run, evaluation.name, "dependent_samples", "info",
                f"Foreign pictures that are not independent of each other make intervals too narrow: {why}.",
            )  # fmt: skip


def _few(run: Run) -> Iterator[Flag]:
    n = max((len(rows) for _, rows in run.of_kind("clean", "attack")), default=0)
    if not n:
        return
    ends = wilson(n // 2, n)
    half = (ends.high - ends.low) / 2
    if half > WIDE:
        yield _flag(
            run, "", "few_samples", "info",
            f"With {n} samples a rate is known to ±{100 * half:.0f} points only. "
            "Raise --n, if the data have more: finished samples are kept.",
        )  # fmt: skip
