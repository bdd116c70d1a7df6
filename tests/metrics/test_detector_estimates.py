"""What stands with a detector, from rows that a test says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from doubt_fakes import attack, rows, run
from torch import Tensor

from robustgen.attacks.detector import confidence, fit
from robustgen.classifiers.base import Classifier
from robustgen.metrics.detector_estimates import detector_estimates, judged_by
from robustgen.metrics.rows import Rows


def of(score: str, **more: Any) -> dict[str, Any]:
    return attack("detector-aware", **more) | {"name": "detected", "kind": "detected", "score": score}


def judged(right: list[bool], scores: list[float], threshold: float = 0.5) -> Rows:
    return rows(right, scores=[[("judged", s), ("threshold", threshold)] for s in scores])


CLEAN = {"name": "clean", "kind": "clean"}
T, F = True, False


def shares(*evaluations: tuple[dict[str, Any], Rows]) -> dict[str, float]:
    return {e.metric.variant: e.metric.value for e in detector_estimates(run(*evaluations))}


def test_a_sample_stands_that_is_right_and_accepted_and_never_wrong_and_accepted() -> None:
    # 0 stands; 1 is rejected when clean; 2 is wrong when clean; 3 falls to the unaware attack, and that
    # attack's picture of 4 is rejected; the aware one takes 4, and its picture of 5 is rejected
    clean = rows([T, T, F, T, T, T], log_prob=[0.9, 0.1, 0.9, 0.9, 0.9, 0.9])
    unaware = rows([T, T, F, F, F, T], log_prob=[0.9, 0.9, 0.9, 0.6, 0.4, 0.9])
    aware = judged([T, F, F, T, F, F], [0.9, 0.9, 0.9, 0.9, 0.5, 0.49])
    found = shares((CLEAN, clean), (attack("autoattack"), unaware), (of("log_prob"), aware))
    assert found == {"clean": 4 / 6, "unaware": 3 / 6, "": 2 / 6}


def test_attacks_of_another_norm_or_a_larger_ball_are_no_part_of_it() -> None:
    wrong = rows([F] * 4, log_prob=[0.9] * 4)
    clean = rows([T] * 4, log_prob=[0.9] * 4)
    others = [(attack("pgd", 0.2), wrong), (attack("pgd", norm="l2"), wrong)]
    assert shares((CLEAN, clean), *others, (of("log_prob"), judged([T] * 4, [1.0] * 4))) == {
        "clean": 1.0, "": 1.0,
    }  # fmt: skip


def test_by_confidence_clean_pictures_are_judged_by_the_log_of_the_largest_softmax() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4]]))
    aware = judged([T, T], [0.0, 0.0], threshold=float(np.log(0.7)))
    assert shares((CLEAN, rows([T, T], logits=logits)), (of("confidence"), aware))["clean"] == 0.5


class Logits(Classifier):
    """Pictures that are their own logits."""

    num_classes, input_shape = 10, (10, 1, 1)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("bound", [1, 3, 10, 30])
@pytest.mark.parametrize("steepness", [0.1, 2, 50])
def test_by_confidence_stored_rows_are_judged_as_the_detector_judges_their_pictures(
    bound: float, steepness: float
) -> None:
    drawn = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    logits = bound * torch.tanh(steepness * (drawn - drawn.topk(2).values.mean(1, keepdim=True)))
    fitted = fit(Logits(), logits[:, :, None, None], confidence)
    clean = rows([T] * 500, logits=logits.numpy())
    accepted = judged_by("confidence", clean) >= fitted.threshold
    assert accepted.tolist() == (fitted.excess(Logits(), logits[:, :, None, None]) >= 0).tolist()
    assert accepted.mean() >= 0.95


@pytest.mark.parametrize("with_clean", [True, False])
def test_without_the_score_or_the_clean_rows_nothing_is_said(with_clean: bool) -> None:
    evaluations = [(CLEAN, rows(4))] if with_clean else []
    aware = rows(4) if with_clean else judged([T] * 4, [1.0] * 4)
    assert not shares(*evaluations, (of("log_prob"), aware))
