"""Rows of the same samples, whatever else their runs computed."""

from __future__ import annotations

from dataclasses import fields

import doubt_fakes as fake
import numpy as np

from robustgen.metrics import selective
from robustgen.metrics.rows import Rows, aligned, log_odds, log_softmax


def rows(ids: list[int]) -> Rows:
    """Rows each of whose columns says the id in its own way."""
    logits = np.stack([np.array(ids, float), -np.array(ids, float)], 1)
    return fake.rows(
        [i % 2 == 0 for i in ids], logits=logits, sample_id=ids, label=[2 * i for i in ids],
        draws=[i + 1 for i in ids], draws_correct=ids, log_prob=[-0.5 * i for i in ids],
        broken_by=[f"stage {i}" for i in ids], within_budget=[i % 3 == 0 for i in ids],
        seeded_by=[f"seed {i}" for i in ids], forwards=[10.0 * i for i in ids],
        backwards=[20.0 * i for i in ids], scores=[{"energy": 0.25 * i} for i in ids],
    )  # fmt: skip


def test_aligned_rows_are_of_the_samples_that_all_have_with_every_column() -> None:
    first, second, third = aligned(rows([0, 2, 3, 7, 9]), rows([2, 3, 4, 9]), rows([1, 2, 9]))
    wanted = rows([2, 9])
    for found in (first, second, third):
        for column in fields(Rows):
            if column.name != "scores":
                np.testing.assert_array_equal(getattr(found, column.name), getattr(wanted, column.name))
        assert found.scores.keys() == {"energy"}
        np.testing.assert_array_equal(found.scores["energy"], [0.5, 2.25])
        np.testing.assert_array_equal(found.share, wanted.share)


def test_rows_without_a_sample_in_common_are_none() -> None:
    assert [len(found) for found in aligned(rows([0, 2]), rows([1, 3]))] == [0, 0]


def test_the_place_of_a_sample_is_where_its_row_stands() -> None:
    found = rows([3, 5, 8])
    np.testing.assert_array_equal(found.at(np.array([8, 3])), [2, 0])
    assert found.labels[found.at(5)] == 10


def test_log_odds_are_those_of_the_confidence() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 6))
    p = np.exp(log_softmax(logits)).max(1)
    np.testing.assert_allclose(log_odds(logits), np.log(p / (1 - p)), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(log_odds(logits[:, :1]), np.zeros(50))


def test_who_is_surer_is_known_where_every_confidence_rounds_to_1() -> None:
    gaps = np.linspace(40, 90, 60)
    logits = np.stack([gaps, 0 * gaps], 1)
    right = gaps > 60  # what is less sure is wrong
    confidence = np.exp(log_softmax(logits)).max(1)
    assert (confidence == 1).all()
    assert selective.e_aurc(log_odds(logits), right).value == 0
    assert selective.e_aurc(confidence, right).value > 0.2
