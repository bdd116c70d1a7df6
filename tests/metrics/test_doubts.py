"""Flags on what the rows alone do not show, and on what clean rows show of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from doubt_fakes import attack, rows, run

from robustgen.attacks.probes import schema
from robustgen.metrics import doubts
from robustgen.metrics.rows import Run
from robustgen.types import Flag

CLEAN = {"name": "clean", "kind": "clean"}


def whole(family: str = "softmax", foreign: str = "letters") -> Run:
    details = [
        CLEAN,
        {"name": "calibration", "kind": "calibration"},
        {"name": "foreign", "kind": "ood", "data": foreign},
    ]
    return run(*((d, rows()) for d in details), model={"family": family})


def flags(found: Run) -> dict[str, Flag]:
    return {flag.flag: flag for flag in doubts.find_doubts(found)}


@pytest.mark.parametrize("lost", [0, 5, 8])
def test_a_lost_table_beside_the_rows_is_an_incomplete_evaluation(lost: int) -> None:
    full = whole()
    clean = replace(full.evaluations["clean"], lost=lost)
    found = flags(replace(full, evaluations=full.evaluations | {"clean": clean}))
    assert ("incomplete" in found) == (lost > 0)
    if lost:
        assert (found["incomplete"].evaluation, found["incomplete"].severity) == ("clean", "error")
        assert found["incomplete"].message.startswith(f"{8 - lost} of 8 evaluated: a table")


def test_probes_are_read() -> None:
    full = run((CLEAN, rows()), ({"name": "probes", "kind": "probes"}, rows()))
    numbers = dict.fromkeys([name for name in schema().names if name != "sample_id"], 0.0)
    zero = pd.DataFrame({"sample_id": range(8), **(numbers | {"ce_gradient_zero": 1.0})})
    probes = replace(full.evaluations["probes"], table=zero)
    found = flags(replace(full, evaluations=full.evaluations | {"probes": probes}))
    assert found["zero_gradients"].evaluation == "probes"


def test_calibration_labels_that_the_logits_do_not_know_are_named() -> None:
    calibration = {"name": "calibration", "kind": "calibration"}
    numbers = logits(64)
    found = {
        what: flags(run((CLEAN, rows(64)), (calibration, rows([False] * 64, logits=numbers, label=labels))))
        for what, labels in (("wrong", numbers.argmin(1)), ("some", np.r_[numbers[:60].argmax(1), [0] * 4]))
    }
    assert found["wrong"]["no_temperature"].severity == "warning"
    assert "no_temperature" not in found["some"]


def measured(labels: np.ndarray, n: int) -> Run:
    """A run of the first n samples of data with these labels."""
    made = run((CLEAN, rows(n, label=labels[:n])))
    sizes = np.bincount(labels).tolist()
    names = [f"class {k}" for k in range(len(sizes))]
    return replace(made, spec=made.spec | {"data": {"class_sizes": sizes, "class_names": names}})


@pytest.mark.parametrize(
    ("classes", "n"),
    [(10, 20), (10, 25), (10, 50), (10, 900), (2, 50), (2, 550), (100, 50), (100, 300), (100, 500)],
)
def test_the_first_samples_of_sorted_data_are_unlike_the_whole(classes: int, n: int) -> None:
    drawn = np.random.default_rng(0).integers(classes, size=1000)
    flag = flags(measured(np.sort(drawn), n))["unlike_the_data"]
    assert flag.severity == "warning"
    assert f"the first {n} of 1000" in flag.message
    assert "--n 1000" in flag.message


@pytest.mark.parametrize(
    ("each", "n", "missing"), [(6, 6, 9), (6, 12, 8), (6, 30, 5), (6, 59, 0), (100, 7, 9)]
)
def test_few_samples_that_come_sorted_are_unlike_the_whole(each: int, n: int, missing: int) -> None:
    labels = np.repeat(np.arange(10), each)
    message = flags(measured(labels, n))["unlike_the_data"].message
    assert f"first {n} of {10 * each} samples" in message
    assert f"{missing} of 10 classes are missing" in message or f"{missing} of 10 classes, such as" in message
    assert "unlike_the_data" not in flags(measured(labels, 3))


def test_a_class_whose_name_has_a_full_stop_stands_in_the_fact() -> None:
    made = measured(np.repeat(np.arange(10), 100), 50)
    made.spec["data"]["class_names"][1] = "St. Bernard"
    fact, _, remedy = flags(made)["unlike_the_data"].message.partition(". ")
    assert "such as 'St.\N{NO-BREAK SPACE}Bernard', have less" in fact
    assert remedy.startswith("Use all samples")


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.1] * 10, [0.9, 0.09, 0.009, 0.001], [0.01] * 100])
def test_the_first_samples_of_random_orders_are_like_the_whole(shares: list[float]) -> None:
    for seed in range(20):
        labels = np.random.default_rng(seed).choice(len(shares), size=1000, p=shares)
        for n in (1, 2, 10, 50, 300, 999, 1000):
            assert "unlike_the_data" not in flags(measured(labels, n)), (seed, n)


def test_a_run_that_does_not_say_how_large_the_classes_are_passes() -> None:
    made = measured(np.repeat(np.arange(10), 100), 20)
    del made.spec["data"]["class_sizes"]
    assert "unlike_the_data" not in flags(made)


def test_of_a_custom_model_the_training_pictures_are_not_known() -> None:
    assert "unknown_training" not in flags(whole())
    flag = flags(whole("custom"))["unknown_training"]
    assert flag.severity == "info"
    assert "calibration or test pictures" in flag.message
    assert "too good" in flag.message
    without = whole("custom")
    del without.evaluations["calibration"]
    assert "unknown_training" not in flags(without)


def test_outputs_that_are_probabilities_are_named() -> None:
    numbers = logits(64)
    soft = np.exp(numbers) / np.exp(numbers).sum(1, keepdims=True)
    flag = flags(run((CLEAN, rows(64, logits=soft))))["probabilities"]
    assert (flag.evaluation, flag.severity) == ("", "error")
    for other in (numbers, np.log(soft), abs(numbers)):
        assert "probabilities" not in flags(run((CLEAN, rows(64, logits=other))))


def test_foreign_pictures_that_depend_on_each_other_are_named() -> None:
    assert "ten fonts" in flags(whole())["dependent_samples"].message
    assert "half-overlapping" in flags(whole(foreign="photos"))["dependent_samples"].message
    assert "dependent_samples" not in flags(whole(foreign="mnist"))


def test_stored_scores_that_are_no_number_are_named() -> None:
    strange = [np.nan, -np.inf, *map(float, range(6))]
    scores = [[("gradient", value), ("chroma", 1.0)] for value in strange]
    flag = flags(run((CLEAN, rows(scores=scores))))["scores_not_finite"]
    assert "gradient (2 of 8)" in flag.message
    assert "chroma" not in flag.message
    assert "scores_not_finite" not in flags(run((CLEAN, rows(scores=scores[2:] + scores[2:4]))))


@pytest.mark.parametrize(("declared", "severity"), [(True, "info"), (False, "warning")])
def test_a_random_model_is_named_and_one_that_hides_it_is_warned_of(declared: bool, severity: str) -> None:
    model = {"stochastic": True, "stochastic_declared": declared}
    flag = flags(run((CLEAN, rows()), model=model))["random_forward"]
    assert flag.severity == severity
    assert "random_forward" not in flags(run((CLEAN, rows())))


def test_a_model_that_mixes_the_pictures_of_a_batch_is_named() -> None:
    assert (
        flags(run((CLEAN, rows()), model={"stochastic": False, "mixes": True}))["mixed_batch"].severity
        == "error"
    )
    assert "mixed_batch" not in flags(run((CLEAN, rows())))


def test_rows_seeded_by_chunk_are_explained_by_what_draws() -> None:
    by_chunk = rows(seeded_by=["chunk"] * 8)
    outside = run((CLEAN, rows()), (attack("torchattacks-cw"), by_chunk))
    assert "Outside attacks" in flags(outside)["seeded_by_chunk"].message
    random = run((CLEAN, by_chunk), (attack("pgd"), by_chunk), model={"stochastic": True})
    assert flags(random)["seeded_by_chunk"].message.startswith("A stochastic model draws for a whole batch")


def logits(n: int, classes: int = 10, spread: float = 5.0) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=spread, size=(n, classes)).astype(np.float32)


@pytest.mark.parametrize(
    "found",
    [
        logits(64),
        logits(2000),
        logits(64, 2),
        logits(64, 1000),
        np.concatenate([logits(8)] * 8),  # equal pictures
        np.tile(np.float32([[1, 0]]), (64, 1)),  # too few values to tell
        1e4 * logits(64),
        np.pad(logits(64, 1), ((0, 0), (1, 0))),  # a sigmoid's, as (0, z)
    ],
)
def test_logits_as_they_are_pass(found: np.ndarray) -> None:
    assert "quantised_logits" not in flags(run((CLEAN, rows(len(found), logits=found))))


@pytest.mark.parametrize(
    "found",
    [
        logits(64).round(),
        logits(64).round(1),
        logits(64).round(2),
        logits(1000).round(2),
        np.round(8 * logits(64)) / 8,
        np.pad(logits(64).round(2), ((0, 0), (1, 0))),
        np.eye(10, dtype=np.float32)[logits(64).argmax(1)],  # a vote
        logits(64) + np.float32(1e6),  # float32 is as coarse there
    ],
)
def test_rounded_logits_are_named(found: np.ndarray) -> None:
    flag = flags(run((CLEAN, rows(len(found), logits=found))))["quantised_logits"]
    assert flag.severity == "warning"
    assert "joint-adaptive" in flag.message


def test_an_attack_on_a_detector_that_a_model_cannot_have_is_said() -> None:
    line = {"name": "detected", "kind": "detected", "score": "log_prob", "norm": "linf", "eps": 0.1}
    found = flags(run((CLEAN, rows(64)), (line, rows(64))))
    assert "no log_prob" in found["detector_left_out"].message
    scores = [[("threshold", 0.0), ("judged", 1.0)]] * 64
    assert "detector_left_out" not in flags(run((CLEAN, rows(64)), (line, rows(64, scores=scores))))
