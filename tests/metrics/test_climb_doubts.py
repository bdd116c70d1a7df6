"""Flags of climbs: on trained nets as they are and masked, and on tables made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from doubt_fakes import rows, run
from test_probe_doubts import HONEST, Masked, digits

from robustgen import load_model
from robustgen.attacks.climbs import Climbs
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.metrics.climb_doubts import climb_doubts
from robustgen.threat import ThreatModel

CLIMBS = {"name": "climbs", "kind": "climbs"}


def judge(model: Classifier) -> set[str]:
    """The flags of climbs from 64 digits."""
    part = digits()
    served = FixedBatch(model.eval().requires_grad_(False), 64)
    served.begin(len(part))
    with torch.no_grad():
        right = (served.logits(part.images).argmax(1) == part.labels).tolist()
    clean = rows(right, label=part.labels.tolist())
    draws = Draws(0, "climbs", part.sample_ids)
    table = Climbs(ThreatModel("linf", 0.15), every=1)(served, part.images, part.labels, draws).to_pandas()
    return {flag.flag for flag in climb_doubts(run((CLIMBS, clean), classes=10, table=table))}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_accused(name: str) -> None:
    assert judge(load_model(name)) == set()


def test_a_sine_of_the_logits_makes_the_loss_fall_and_the_seed_decide() -> None:
    shattered = Masked(load_model("pgd-at-digits"), mask=lambda z: z + 3 * torch.sin(200 * z))
    assert judge(shattered) == {"loss_not_monotone", "seed_dependent"}


GOOD = {
    "ce_gradient_zero": 0.0, "gradient_zero": 0.0, "promised": 1.0, "rise": 5.0, "fall": 0.0,
    "broken": 0.0, "broken_again": 0.0,
}  # fmt: skip


def flags(bad: dict[str, float], k: int, n: int = 20, right: int = 20) -> dict[str, str]:
    """Flag to message, of a table of n climbs of which the first k are bad and ``right`` are right."""
    table = pd.DataFrame([GOOD | (bad if i < k else {}) for i in range(n)]).assign(sample_id=range(n))
    found = run((CLIMBS, rows([i < right for i in range(20)])), table=table)
    return {f.flag: f.message for f in climb_doubts(found)}


@pytest.mark.parametrize(
    ("bad", "k", "flag", "word"),
    [
        ({"gradient_zero": 1.0}, 1, "zero_gradients", "the gradient is exactly 0"),
        ({"ce_gradient_zero": 1.0}, 1, "zero_gradients", "cross-entropy's"),
        ({"promised": 501.0}, 2, "exploding_gradients", "500"),
        ({"promised": np.nan}, 2, "exploding_gradients", "NaN"),
        ({"fall": 1.01}, 2, "loss_not_monotone", "more steps do not make the attack stronger"),
        ({"broken": 1.0}, 2, "seed_dependent", "depends on the seed"),
        ({"broken_again": 1.0}, 2, "seed_dependent", "2 from only one of the two"),
    ],
)
def test_a_bad_share_is_flagged_and_one_less_is_not(
    bad: dict[str, float], k: int, flag: str, word: str
) -> None:
    assert flags(bad, k - 1) == {}
    (found,) = flags(bad, k).items()
    assert found[0] == flag
    assert word in found[1]


def test_samples_that_are_wrong_anyway_and_empty_tables_say_nothing() -> None:
    assert flags({"fall": 5.0}, 20, right=0) == {}
    assert flags({}, 0, n=0) == {}


def test_a_few_zeros_of_all_logits_do_not_hide_many_of_the_cross_entropys() -> None:
    table = pd.DataFrame([GOOD | {"ce_gradient_zero": float(i < 60)} for i in range(200)])
    table = table.assign(sample_id=range(200))
    table.loc[0, "gradient_zero"] = 1.0
    (flag,) = climb_doubts(run((CLIMBS, rows(200)), table=table))
    assert "where the cross-entropy's gradient is exactly 0, on 60 of 200" in flag.message
