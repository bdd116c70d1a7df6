"""Doubts about a run's numbers, each with its remedy: the flags of a report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robustgen.metrics.attack_doubts import attack_doubts
from robustgen.metrics.calibration import separable, uninformative
from robustgen.metrics.climb_doubts import climb_doubts
from robustgen.metrics.gradient_doubts import gradient_doubts
from robustgen.metrics.intervals import wilson
from robustgen.metrics.ood_doubts import ood_doubts
from robustgen.metrics.probe_doubts import probe_doubts
from robustgen.metrics.rows import Run
from robustgen.types import ADDED, Flag, unbroken

WIDE = 0.05
SUM_TO_1 = 1e-4
# A class is scarce below a third of its share; flagged are more than 1 of 100,000 random orders would give.
SCARCE, BY_CHANCE = 1 / 3, 1e-5
# 1000 float32 numbers of a spread of 40 have 0.02 pairs of equal ones; 0.95 means about 10,000 values.
MANY_VALUES, FEW_VALUES, DISTINCT = 1000, 20, 0.95


def find_doubts(run: Run) -> list[Flag]:
    """All flags of a run."""
    parts = (
        _incomplete,
        _lost_tables,
        _set_aside,
        _smaller_batch,
        _refused,
        _chance,
        attack_doubts,
        probe_doubts,
        climb_doubts,
        _without_detector,
        gradient_doubts,
        _random,
        _mixed,
        _probabilities,
        _quantised,
        _chunk_seed,
        _temperature,
        _unknown_training,
        ood_doubts,
        _unlike_the_data,
        _few,
    )
    return [flag for part in parts for flag in part(run)]


def _incomplete(run: Run) -> Iterator[Flag]:
    for evaluation in run.evaluations.values():
        have = len(evaluation.rows) if evaluation.rows else 0
        if have >= evaluation.wanted:
            continue
        last = next((e for e in reversed(run.errors) if e["chunk"]["evaluation"] == evaluation.name), None)
        if ADDED in evaluation.detail:
            yield Flag(
                run.model, evaluation.name, "incomplete", "warning",
                f"{have} of {evaluation.wanted} samples were asked about these pictures from elsewhere; they "
                "lower the worst case of these alone. 'robustgen verify DIR --add FILE' computes the rest.",
            )  # fmt: skip
            continue
        said = str(last["error"]).splitlines() if last else []
        got = [line.partition("got:")[2].strip() for line in said[1:] if line.startswith("  got:")]
        reason = f" The last failure: {'; got: '.join([said[0], *got])}." if said else ""
        yield Flag(
            run.model, evaluation.name, "incomplete", "error",
            f"{have} of {evaluation.wanted} evaluated.{reason} The same command tries again what is missing.",
        )  # fmt: skip


def _lost_tables(run: Run) -> Iterator[Flag]:
    """A table beside the rows may be lost while the rows are there."""
    for evaluation in run.evaluations.values():
        if evaluation.rows and evaluation.lost:
            have = len(evaluation.rows) - evaluation.lost
            yield Flag(
                run.model, evaluation.name, "incomplete", "error",
                f"{have} of {evaluation.wanted} evaluated: a table that was written beside the rows is lost. "
                "Run the same command again: it computes the chunks whose tables are gone.",
            )  # fmt: skip


def _set_aside(run: Run) -> Iterator[Flag]:
    """Files that were found damaged, whatever became of their chunks since: a disk may be failing."""
    found: dict[str, list[str]] = {}
    for line in run.errors:
        if "aside" in line:
            found.setdefault(line["chunk"]["evaluation"], []).append(str(line["aside"]))
    for evaluation, names in found.items():
        shown = ", ".join(dict.fromkeys(names[:3])) + (" and others" if len(names) > 3 else "")
        yield Flag(
            run.model, evaluation, "set_aside", "info",
            f"Damaged on disk and set aside: {shown}. What was in it is computed anew; look at the disk.",
        )  # fmt: skip


def _smaller_batch(run: Run) -> Iterator[Flag]:
    for evaluation in run.evaluations.values():
        for batch, count in sorted(evaluation.smaller.items()):
            yield Flag(
                run.model, evaluation.name, "smaller_batch", "warning",
                f"Memory ran out, and {count} samples were computed {batch} at a time, not "
                f"{run.spec['kernels']['batch']}. They agree with the rest to rounding, not to the "
                "bit (docs/faults.md). Free some memory, or choose a smaller --batch in another --out.",
            )  # fmt: skip


def _refused(run: Run) -> Iterator[Flag]:
    for refusal in run.spec.get("refused", []):
        reason = unbroken(str(refusal["reason"]).rstrip("."))
        yield Flag(
            run.model, str(refusal["evaluation"]), "left_out", "info",
            f"Left out: {reason}. Choose a protocol without it, or data that allow it.",
        )  # fmt: skip


def _chance(run: Run) -> Iterator[Flag]:
    clean, chance = run.first("clean"), 1 / run.spec["model"]["num_classes"]
    if clean is not None and wilson(int(clean.correct.sum()), len(clean)).low <= chance:
        yield Flag(
            run.model, "clean", "no_better_than_chance", "warning",
            f"{clean.correct.mean():.0%} right on clean pictures, where chance is {chance:.0%}. "
            "Look at the order of the classes and at the normalisation ('robustgen check MODEL').",
        )  # fmt: skip


def _without_detector(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("detected"):
        if "threshold" not in rows.scores:
            yield Flag(
                run.model, evaluation.name, "detector_left_out", "info",
                f"This model has no {evaluation.detail['score']} that a detector could go by, or answers at "
                "random: nothing was attacked here. Take the score 'confidence'.",
            )  # fmt: skip


def _random(run: Run) -> Iterator[Flag]:
    """A model that is random and says so is judged fairly; one that does not is caught at it."""
    model = run.spec["model"]
    if not model["stochastic"]:
        return
    if model.get("stochastic_declared", True):
        yield Flag(
            run.model, "", "random_forward", "info",
            "This model says that its answers are random, and is judged by many draws. Read its accuracy "
            "by majority and worst case beside the mean.",
        )  # fmt: skip
    else:
        yield Flag(
            run.model, "", "random_forward", "warning",
            "This model gives the same pictures other logits at a second call and does not say so: it is "
            "judged by many draws, but by the global generators' seeds. Declare stochastic = True and "
            "reseed(seed), or take the randomness out.",
        )  # fmt: skip


def _mixed(run: Run) -> Iterator[Flag]:
    if run.spec["model"].get("mixes"):
        yield Flag(
            run.model, "", "mixed_batch", "error",
            "This model's answer to a picture depends on the pictures beside it, or on its place among them, "
            "so that no figure here is its own. Take out of forward() statistics of the batch, such as "
            "batch-norm without running ones, and noise that is drawn from one seed for the whole batch.",
        )  # fmt: skip


def _probabilities(run: Run) -> Iterator[Flag]:
    """Numbers that all lie above 0 and sum to 1 for every picture are a softmax's."""
    clean = run.first("clean")
    if clean is not None and (clean.logits >= 0).all() and np.abs(clean.logits.sum(1) - 1).max() < SUM_TO_1:
        yield Flag(
            run.model, "", "probabilities", "error",
            "The outputs are probabilities, not logits: calibration, energy and gradients are not this "
            "model's. Return logits, or log-probabilities.",
        )  # fmt: skip


def _quantised(run: Run) -> Iterator[Flag]:
    """Float32 logits hardly ever meet twice; rounded ones do."""
    clean = run.first("clean")
    if clean is None:
        return
    # equal pictures have equal rows; a class whose logit never changes is the zero of the others
    rows = np.unique(clean.logits, axis=0)
    rows = rows[:, (rows != rows[0]).any(0)]
    values = rows[: max(1, MANY_VALUES // max(1, rows.shape[1]))].ravel()
    different = len(np.unique(values))
    if len(values) >= FEW_VALUES and different < DISTINCT * len(values):
        yield Flag(
            run.model, "clean", "quantised_logits", "warning",
            f"{len(values)} logits have {different} different values: they are rounded, or so large that "
            "float32 rounds them, and attacks that compare losses see steps. Return logits as they are; "
            "attack with gradients averaged over noise or estimated from logits (joint-adaptive).",
        )  # fmt: skip


def _chunk_seed(run: Run) -> Iterator[Flag]:
    named = [e.name for e, rows in run.of_kind("attack") if (rows.seeded_by == "chunk").any()]
    if run.spec["model"]["stochastic"]:
        if any((rows.seeded_by == "chunk").any() for _, rows in run.of_kind("clean", "attack")):
            yield Flag(
                run.model, "", "seeded_by_chunk", "info",
                "A random model draws for a whole batch at once, so all of its rows are seeded by chunk. "
                "A rerun is bit-equal; another chunk size gives other draws. Keep the protocol's chunk.",
            )  # fmt: skip
    elif named:
        yield Flag(
            run.model, "", "seeded_by_chunk", "info",
            f"Outside attacks draw from the global generator, seeded by chunk: {', '.join(named)}. "
            "A rerun is bit-equal; another chunk size gives other draws. Keep the protocol's chunk.",
        )  # fmt: skip


def _temperature(run: Run) -> Iterator[Flag]:
    if run.first("clean") is None:
        return
    fitted = run.first("calibration")
    if fitted is None:
        yield Flag(
            run.model, "calibration", "no_calibration", "warning",
            "No calibration split, so no temperature was fitted and calibration is given as is only. "
            "Use data with a calibration split.",
        )  # fmt: skip
    elif separable(fitted.logits, fitted.labels):
        yield Flag(
            run.model, "calibration", "no_temperature", "info",
            f"All {len(fitted)} calibration samples are right, or tied with what is, so the likelihood has "
            "no best temperature; 1 was taken. A larger calibration split would decide.",
        )  # fmt: skip
    elif uninformative(fitted.logits, fitted.labels):
        yield Flag(
            run.model, "calibration", "no_temperature", "warning",
            "On the calibration split labels have no larger logits than other classes have, so the "
            "likelihood has no best temperature; the largest that is sought was taken. Look at its labels.",
        )  # fmt: skip


def _unknown_training(run: Run) -> Iterator[Flag]:
    if run.spec["model"]["family"] == "custom" and run.first("calibration") is not None:
        yield Flag(
            run.model, "calibration", "unknown_training", "info",
            "This model is not of the zoo, and calibration or test pictures may have been among its training "
            "pictures: its numbers may be too good, those with a fitted temperature too. "
            'Train on load_data(NAME, "train") alone to be sure.',
        )  # fmt: skip


def _unlike_the_data(run: Run) -> Iterator[Flag]:
    """The first samples of data that are sorted by class are of few classes.

    In a random order the classes that turn out scarce are negatively associated, so Hoeffding's bound
    (1963, theorem 1) on how many there are holds as if they were independent.
    """
    sizes = np.array(run.spec.get("data", {}).get("class_sizes", []))  # older runs do not say
    labels = max((rows.labels for _, rows in run.of_kind("clean", "attack")), default=np.array([]), key=len)
    n, size, classes = len(labels), int(sizes.sum()), len(sizes)
    if not 0 < n < size:
        return
    from scipy.special import rel_entr
    from scipy.stats import hypergeom

    few = SCARCE * n * sizes / size
    scarce = np.flatnonzero(np.bincount(labels, minlength=classes) < few)
    expected = hypergeom.cdf(np.ceil(few) - 1, size, sizes, n).mean()
    found = len(scarce) / classes
    chance = np.exp(-classes * (rel_entr(found, expected) + rel_entr(1 - found, 1 - expected)))
    if found > expected and chance < BY_CHANCE:
        named = unbroken(repr(run.spec["data"]["class_names"][scarce[0]]))
        yield Flag(
            run.model, "", "unlike_the_data", "warning",
            f"Among the first {n} of {size} samples {len(scarce)} of {classes} classes, such as {named}, "
            "have less than a third of their share: the data seem to be sorted by class. Take all "
            f"(--n {size}), or store them in random order.",
        )  # fmt: skip
    elif _sorted_by_chance(labels, sizes) < BY_CHANCE:
        yield Flag(
            run.model, "", "unlike_the_data", "warning",
            f"The labels of the first {n} of {size} samples come sorted, and {classes - len(set(labels))} of "
            f"{classes} classes are missing among them: the data seem to be sorted by class. Take all "
            f"(--n {size}), or store them in random order.",
        )  # fmt: skip


def _sorted_by_chance(labels: np.ndarray, sizes: np.ndarray) -> float:
    """How likely a random order of all samples begins as the sorted one, where it does; else 1."""
    places, begins = np.arange(len(labels)), np.cumsum(sizes) - sizes
    if not np.array_equal(labels, np.repeat(np.arange(len(sizes)), sizes)[: len(labels)]):
        return 1.0
    return float(np.prod((sizes[labels] - (places - begins[labels])) / (sizes.sum() - places)))


def _few(run: Run) -> Iterator[Flag]:
    n = max((len(rows) for _, rows in run.of_kind("clean", "attack")), default=0)
    if not n:
        return
    ends = wilson(n // 2, n)
    half = (ends.high - ends.low) / 2
    if half > WIDE:
        yield Flag(
            run.model, "", "few_samples", "info",
            f"With {n} samples a rate is known to ±{100 * half:.0f} points only. "
            "Raise --n, if the data have more: finished samples are kept.",
        )  # fmt: skip
