"""Risk against coverage: its definition by a loop, its mean over tied orders, and pytorch-ood's."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustgen.metrics import selective
from robustgen.metrics.intervals import resamples

RNG = np.random.default_rng(0)


def by_definition(right: list[bool]) -> float:
    """The mean over k of the share wrong among the first k."""
    wrong = 0
    risks = []
    for k, verdict in enumerate(right, start=1):
        wrong += not verdict
        risks.append(wrong / k)
    return sum(risks) / len(risks)


def test_aurc_without_ties_by_its_definition() -> None:
    confidence, right = RNG.permutation(300) / 300, RNG.random(300) < 0.8
    ordered = right[np.argsort(-confidence)].tolist()
    assert selective.aurc(confidence, right).value == pytest.approx(by_definition(ordered), abs=1e-12)
    best = by_definition(sorted(right.tolist(), reverse=True))
    assert selective.e_aurc(confidence, right).value == pytest.approx(
        by_definition(ordered) - best, abs=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_ties_count_as_the_mean_over_their_orders(samples: list[tuple[int, bool]]) -> None:
    orders = [
        o for o in permutations(samples) if [c for c, _ in o] == sorted((c for c, _ in o), reverse=True)
    ]
    expected = np.mean([by_definition([right for _, right in order]) for order in orders])
    confidence, right = (np.array(part) for part in zip(*samples, strict=True))
    assert selective.aurc(confidence.astype(float), right).value == pytest.approx(expected)
    curve = selective.risk_coverage(confidence.astype(float), right)
    assert curve.risk.mean() == pytest.approx(expected)
    assert curve.risk[-1] == pytest.approx(1 - right.mean())
    assert curve.coverage.tolist() == pytest.approx([k / len(samples) for k in range(1, len(samples) + 1)])


def test_it_is_one_less_pytorch_oods_and_torch_uncertaintys_by_their_closed_form() -> None:
    confidence, right = RNG.permutation(200) / 200, RNG.random(200) < 0.7
    value = selective.aurc(confidence, right).value
    risks = np.cumsum(~right[np.argsort(-confidence)]) / np.arange(1, 201)
    # torch-uncertainty: trapezoids over coverage 1/n to 1, divided by its length
    trapezoids = np.trapezoid(risks, np.arange(1, 201) / 200) / (1 - 1 / 200)
    assert (200 * value - (risks[0] + risks[-1]) / 2) / 199 == pytest.approx(trapezoids, abs=1e-12)
    metrics = pytest.importorskip("pytorch_ood.metrics")
    import torch

    theirs = metrics.functional.aurra(torch.tensor(confidence), torch.tensor(right))
    assert 1 - theirs == pytest.approx(value, abs=1e-6)


def test_the_best_and_the_worst_order() -> None:
    right = np.arange(50) < 40
    surest_right = -np.arange(50.0)
    assert selective.e_aurc(surest_right, right).value == pytest.approx(0, abs=1e-12)
    assert selective.e_aurc(-surest_right, right).value > 0.3
    assert selective.aurc(np.ones(50), right).value == pytest.approx(0.2)


@pytest.mark.parametrize("statistic", [selective.aurc, selective.e_aurc])
@pytest.mark.parametrize("versions", [1, 3])
def test_replicates_are_the_statistic_of_resamples(statistic, versions: int) -> None:
    confidence, right = RNG.random(60).round(1), RNG.random(60) < 0.7
    found = statistic(confidence, right, versions)
    pictures = np.repeat(np.arange(60 // versions), resamples(60 // versions)[5])
    again = (pictures[:, None] * versions + np.arange(versions)).ravel()
    assert found.replicates[5] == pytest.approx(statistic(confidence[again], right[again]).value)
