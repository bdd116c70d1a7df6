"""The flags of a report: doubts about a run's numbers, each with its remedy."""

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

WIDE = 0.05  # half the width of an interval from which on samples are too few
SUM_TO_1 = 1e-4  # how closely the outputs of a softmax do
SCARCE = 1 / 3  # of its share, below which a class is scarce among the first samples
BY_CHANCE = 1e-5  # the probability in a random order below which scarce classes raise a flag
# Logits are quantised where less than DISTINCT of FEW_VALUES to MANY_VALUES of them differ. Of 1000 float32
# numbers with a spread of 40, 0.02 equal pairs are expected; 0.95 corresponds to about 10,000 levels.
MANY_VALUES, FEW_VALUES, DISTINCT = 1000, 20, 0.95


def find_doubts(run: Run) -> list[Flag]:
    """All flags of a run."""
    parts = (
        _incomplete,
        _lost_tables,
        _set_aside,
        _smaller_batch,
        _refused,
        _no_better_than_chance,
        attack_doubts,
        probe_doubts,
        climb_doubts,
        _without_detector,
        gradient_doubts,
        _random_forward,
        _mixed_batch,
        _probabilities,
        _quantised_logits,
        _seeded_by_chunk,
        _temperature,
        _unknown_training,
        ood_doubts,
        _unlike_the_data,
        _few_samples,
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
                f"The model was run on {have} of {evaluation.wanted} of these added pictures, and the worst "
                "case takes only these into account. 'robustgen verify DIR --add FILE' computes the rest.",
            )  # fmt: skip
            continue
        said = str(last["error"]).splitlines() if last else []
        got = [line.partition("got:")[2].strip() for line in said[1:] if line.startswith("  got:")]
        reason = f" The last failure: {'; got: '.join([said[0], *got])}." if said else ""
        yield Flag(
            run.model, evaluation.name, "incomplete", "error",
            f"{have} of {evaluation.wanted} evaluated.{reason} Run the same command again to compute the "
            "rest.",
        )  # fmt: skip


def _lost_tables(run: Run) -> Iterator[Flag]:
    """Rows whose table beside them is lost."""
    for evaluation in run.evaluations.values():
        if evaluation.rows and evaluation.lost:
            have = len(evaluation.rows) - evaluation.lost
            yield Flag(
                run.model, evaluation.name, "incomplete", "error",
                f"{have} of {evaluation.wanted} evaluated: a table that was written beside the rows is lost. "
                "Run the same command again to recompute the chunks without a table.",
            )  # fmt: skip


def _set_aside(run: Run) -> Iterator[Flag]:
    """Files that were found damaged at any time: the disk may be failing."""
    found: dict[str, list[str]] = {}
    for line in run.errors:
        if "aside" in line:
            found.setdefault(line["chunk"]["evaluation"], []).append(str(line["aside"]))
    for evaluation, names in found.items():
        shown = ", ".join(dict.fromkeys(names[:3])) + (" and others" if len(names) > 3 else "")
        yield Flag(
            run.model, evaluation, "set_aside", "info",
            f"Damaged on disk and set aside: {shown}. Their content is recomputed; check the disk.",
        )  # fmt: skip


def _smaller_batch(run: Run) -> Iterator[Flag]:
    for evaluation in run.evaluations.values():
        for batch, count in sorted(evaluation.smaller.items()):
            yield Flag(
                run.model, evaluation.name, "smaller_batch", "warning",
                f"Memory ran out, so {count} samples were computed with batch size {batch} instead of "
                f"{run.spec['kernels']['batch']}. Their rows may differ by rounding (docs/faults.md). "
                "Free some memory, or use a smaller --batch with another --out.",
            )  # fmt: skip


def _refused(run: Run) -> Iterator[Flag]:
    for refusal in run.spec.get("refused", []):
        reason = unbroken(str(refusal["reason"]).rstrip("."))
        yield Flag(
            run.model, str(refusal["evaluation"]), "left_out", "info",
            f"Left out: {reason}. Use a protocol without it, or other data.",
        )  # fmt: skip


def _no_better_than_chance(run: Run) -> Iterator[Flag]:
    clean, chance = run.first("clean"), 1 / run.spec["model"]["num_classes"]
    if clean is not None and wilson(int(clean.correct.sum()), len(clean)).low <= chance:
        yield Flag(
            run.model, "clean", "no_better_than_chance", "warning",
            f"{clean.correct.mean():.0%} right on clean pictures, where chance is {chance:.0%}. "
            "Check the order of the classes and the normalisation ('robustgen check MODEL').",
        )  # fmt: skip


def _without_detector(run: Run) -> Iterator[Flag]:
    for evaluation, rows in run.of_kind("detected"):
        if "threshold" not in rows.scores:
            yield Flag(
                run.model, evaluation.name, "detector_left_out", "info",
                f"This model has no {evaluation.detail['score']} for the detector, or is stochastic, so this "
                "attack was not run. Use the score 'confidence'.",
            )  # fmt: skip


def _random_forward(run: Run) -> Iterator[Flag]:
    """Stochastic models: an info for those that declare it, a warning for those that were found to be."""
    model = run.spec["model"]
    if not model["stochastic"]:
        return
    if model.get("stochastic_declared", True):
        yield Flag(
            run.model, "", "random_forward", "info",
            "This model declares that it is stochastic, so its verdicts are taken over many draws. Read its "
            "accuracy by majority and by worst case beside the mean.",
        )  # fmt: skip
    else:
        yield Flag(
            run.model, "", "random_forward", "warning",
            "This model returns different logits at a second call on the same pictures without declaring "
            "it: its verdicts are taken over many draws, which depend on the seeds of the global "
            "generators. Declare stochastic = True and define reseed(seed), or remove the randomness.",
        )  # fmt: skip


def _mixed_batch(run: Run) -> Iterator[Flag]:
    if run.spec["model"].get("mixes"):
        yield Flag(
            run.model, "", "mixed_batch", "error",
            "This model's output for a picture depends on the other pictures of the batch, or on its "
            "position among them, so its numbers are not well defined. Remove from forward() any statistics "
            "of the batch, such as batch norm without running statistics, and noise that is drawn from one "
            "seed for the batch.",
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


def _quantised_logits(run: Run) -> Iterator[Flag]:
    """Equal float32 logits are rare; rounded ones are often equal."""
    clean = run.first("clean")
    if clean is None:
        return
    # equal pictures have equal rows; a constant logit (one class as the reference) is no sign of rounding
    rows = np.unique(clean.logits, axis=0)
    rows = rows[:, (rows != rows[0]).any(0)]
    values = rows[: max(1, MANY_VALUES // max(1, rows.shape[1]))].ravel()
    different = len(np.unique(values))
    if len(values) >= FEW_VALUES and different < DISTINCT * len(values):
        yield Flag(
            run.model, "clean", "quantised_logits", "warning",
            f"{len(values)} logits have only {different} different values: they are rounded, or so large "
            "that float32 rounds them, which misleads attacks that compare losses. Return unrounded logits; "
            "use gradients averaged over noise or estimated from the logits (joint-adaptive).",
        )  # fmt: skip


def _seeded_by_chunk(run: Run) -> Iterator[Flag]:
    named = [e.name for e, rows in run.of_kind("attack") if (rows.seeded_by == "chunk").any()]
    if run.spec["model"]["stochastic"]:
        if any((rows.seeded_by == "chunk").any() for _, rows in run.of_kind("clean", "attack")):
            yield Flag(
                run.model, "", "seeded_by_chunk", "info",
                "A stochastic model draws for a whole batch at once, so all of its rows are seeded by chunk. "
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
            "There is no calibration split, so no temperature was fitted, and calibration is reported "
            "without it. Use data with a calibration split.",
        )  # fmt: skip
    elif separable(fitted.logits, fitted.labels):
        yield Flag(
            run.model, "calibration", "no_temperature", "info",
            f"On all {len(fitted)} calibration samples the label has the largest logit, so no temperature is "
            "optimal (a lower one always fits better), and 1 was used. Use a larger calibration split.",
        )  # fmt: skip
    elif uninformative(fitted.logits, fitted.labels):
        yield Flag(
            run.model, "calibration", "no_temperature", "warning",
            "On the calibration split the label's logit is on average no larger than other logits, so no "
            "temperature is optimal (a higher one always fits better), and the largest allowed was used. "
            "Check its labels.",
        )  # fmt: skip


def _unknown_training(run: Run) -> Iterator[Flag]:
    if run.spec["model"]["family"] == "custom" and run.first("calibration") is not None:
        yield Flag(
            run.model, "calibration", "unknown_training", "info",
            "This model is not from the zoo, so it may have been trained on calibration or test pictures: "
            "its metrics may be too good. "
            'Train on load_data(NAME, "train") alone to be sure.',
        )  # fmt: skip


def _unlike_the_data(run: Run) -> Iterator[Flag]:
    """The first samples have too few classes, as those of data that are sorted by class do.

    In a random order the events that a class is scarce are negatively associated, so Hoeffding's bound (1963,
    theorem 1) on their number holds as if they were independent.
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
            "have less than a third of their share: the data seem to be sorted by class. Use all samples "
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


def _few_samples(run: Run) -> Iterator[Flag]:
    n = max((len(rows) for _, rows in run.of_kind("clean", "attack")), default=0)
    if not n:
        return
    ends = wilson(n // 2, n)
    half = (ends.high - ends.low) / 2
    if half > WIDE:
        yield Flag(
            run.model, "", "few_samples", "info",
            f"With {n} samples a rate is known only to about ±{100 * half:.0f} percentage points. "
            "Use a larger --n if the data have more samples; finished samples are kept.",
        )  # fmt: skip
