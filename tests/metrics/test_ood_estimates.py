"""Scores of foreign pictures, as they are and under attack, and the doubts about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from test_calibration_estimates import evaluation, rows

from robustgen.metrics import ood
from robustgen.metrics.ood_doubts import ood_doubts
from robustgen.metrics.ood_estimates import ood_estimates
from robustgen.metrics.rows import Evaluation, Rows, Run
from robustgen.types import Metric

RNG = np.random.default_rng(0)


def made(n: int, scale: float, **more: np.ndarray) -> Rows:
    logits = scale * RNG.normal(size=(n, 5))
    plain = rows(logits, RNG.integers(5, size=n))
    return replace(plain, **more)


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    return float(roc_auc_score([1] * len(own) + [0] * len(other), np.r_[own, other]))


def measured(*parts: tuple[str, Evaluation]) -> dict[tuple[str, str], Metric]:
    found = (e.metric for e in ood_estimates(Run("m", {"model": {}}, dict(parts))))
    return {(m.evaluation, m.variant): m for m in found if m.metric == "auroc"}


def test_scores_by_their_formulas() -> None:
    calibration = made(30, 2, log_prob=RNG.normal(-100, 5, 30))
    log_prob, bits = RNG.normal(-100, 20, 50), RNG.integers(400, 900, 50).astype(float)
    of = made(50, 2, log_prob=log_prob, scores={"complexity": bits, "knn": bits})
    found = ood.scores(of, calibration)
    p = np.exp(of.logits - logsumexp(of.logits, axis=1, keepdims=True))
    assert found["entropy"] == pytest.approx(-entropy(p, axis=1))
    assert found["energy"] == pytest.approx(logsumexp(of.logits, axis=1))
    assert found["typicality"] == pytest.approx(-np.abs(log_prob - calibration.log_prob.mean()))
    # Serra's score in bits is -log2 p(x) - L(x), larger for foreign
    assert found["complexity_corrected"] / np.log(2) == pytest.approx(log_prob / np.log(2) + bits)
    assert found["knn"] is bits
    assert set(ood.scores(made(5, 1))) == {"msp", "entropy", "energy", "max_logit"}


def test_a_score_that_only_one_side_has_is_no_measure() -> None:
    found = measured(
        evaluation("clean", "clean", made(40, 3, scores={"knn": RNG.random(40), "chroma": RNG.random(40)})),
        evaluation("ood-x", "ood", made(30, 1, scores={"chroma": RNG.random(30)}), data="x"),
    )
    assert {variant for _, variant in found} == {"msp", "entropy", "energy", "max_logit", "chroma"}


def test_a_stored_score_that_is_no_number_somewhere_is_no_measure() -> None:
    nothing = np.full(40, np.nan)
    found = measured(
        evaluation("clean", "clean", made(40, 3, scores={"gradient": nothing, "knn": RNG.random(40)})),
        evaluation(
            "ood-x", "ood", made(40, 1, scores={"gradient": nothing, "knn": np.full(40, -np.inf)}), data="x"
        ),
    )
    assert {variant for _, variant in found} == {"msp", "entropy", "energy", "max_logit"}
    endless = np.full(40, -np.inf)
    assert float(ood.detection(endless, endless).auroc) == 0.5


def test_after_an_attack_on_a_score_each_side_may_be_the_attacked_one() -> None:
    detail = {"objective": "energy", "norm": "linf", "eps": 0.1, "steps": 20}
    clean, plain, own, theirs = (made(60, scale) for scale in (4, 2, 1, 6))
    found = measured(
        evaluation("clean", "clean", clean),
        evaluation("ood-x", "ood", plain, data="x"),
        evaluation("fixed-energy-linf-0.1", "fixed", own, of="clean", **detail),
        evaluation("ood-x-fixed-energy-linf-0.1", "fixed", theirs, of="ood-x", **detail),
        evaluation("ood-x-fixed-energy-linf-0.2", "fixed", theirs, of="ood-x", **(detail | {"eps": 0.2})),
        evaluation("fixed-label-linf-0.1", "fixed", own, of="clean", **(detail | {"objective": "label"})),
    )
    e = {name: ood.scores(r)["energy"] for name, r in
         {"clean": clean, "plain": plain, "own": own, "theirs": theirs}.items()}  # fmt: skip
    expected = {
        ("ood-x-fixed-energy-linf-0.1", "energy-foreign"): auroc(e["clean"], e["theirs"]),
        ("ood-x-fixed-energy-linf-0.1", "energy-own"): auroc(e["own"], e["plain"]),
        ("ood-x-fixed-energy-linf-0.1", "energy-both"): auroc(e["own"], e["theirs"]),
        ("ood-x-fixed-energy-linf-0.2", "energy-foreign"): auroc(e["clean"], e["theirs"]),
    }
    attacked = {key: m.value for key, m in found.items() if "fixed" in key[0]}
    assert attacked == pytest.approx(expected)


def test_too_few_pictures_say_nothing_and_are_flagged() -> None:
    few = evaluation("ood-x", "ood", made(19, 1), data="turned")
    parts = dict([evaluation("clean", "clean", made(40, 3)), few])
    run = Run("m", {"model": {}}, parts)
    assert list(ood_estimates(run)) == []
    assert {flag.flag for flag in ood_doubts(run)} == {"too_few_foreign", "dependent_samples"}
    enough = run.evaluations | dict([evaluation("ood-x", "ood", made(20, 1), data="x")])
    assert len(list(ood_estimates(replace(run, evaluations=enough)))) == 4 * 7
    assert list(ood_doubts(replace(run, evaluations=enough))) == []


def test_detectors_that_the_rows_lack_are_named() -> None:
    clean = evaluation("clean", "clean", made(40, 3, scores={"odin": np.ones(40)}))
    clean[1].detail["detectors"] = ["odin", "knn", "vim"]
    (flag,) = ood_doubts(Run("m", {"model": {}}, dict([clean])))
    assert flag.flag == "detectors_left_out"
    assert flag.message.startswith("Detectors left out: knn, vim.")
