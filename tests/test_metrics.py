"""Formulas of robustgen.metrics against independent implementations: scipy, scikit-learn, torchmetrics."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax, softmax

from robustgen import threat
from robustgen.metrics import calibration, denoising, intervals, ood, rows
from robustgen.metrics.comparisons import Key, compare
from robustgen.metrics.estimate import Estimate
from robustgen.types import Metric

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (300, 7))
LABELS = np.where(RNG.random(300) < 0.7, LOGITS.argmax(1), RNG.integers(7, size=300))
PROBABILITIES = softmax(LOGITS, axis=1)
ACCURACY = Key("clean", "", "accuracy")
numbers = st.lists(st.integers(0, 6), min_size=1, max_size=40)  # with many ties


@pytest.mark.parametrize("module", [intervals, threat])
def test_examples_of_the_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


# --- intervals and tests -----------------------------------------------------------------------------


@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_is_scipys(n: int, share: float) -> None:
    k = round(n * share)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert intervals.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("cells", "published"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((1, 1, 7, 12), (-0.5069, -0.0256))],
    ids=["Newcombe 1998", "Fagerland et al. 2014"],
)
def test_newcombes_interval_is_the_published_one(
    cells: tuple[int, int, int, int], published: tuple[float, float]
) -> None:
    assert intervals.newcombe(*cells) == pytest.approx(published, abs=1e-4)
    both, only_a, only_b, neither = cells
    low, high = intervals.newcombe(both, only_b, only_a, neither)
    assert (-high, -low) == pytest.approx(published, abs=1e-4)


def test_two_models_that_agree_on_a_few_pictures_may_differ() -> None:
    assert intervals.newcombe(5, 0, 0, 0) == pytest.approx((-0.434, 0.434), abs=1e-3)


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.1, 0.2), (0.9, 0.03, 0.03, 0.04), (0.02, 0.05, 0.01, 0.92)])
@pytest.mark.parametrize("n", [20, 200])
def test_newcombes_interval_holds_the_true_difference(n: int, shares: tuple[float, ...]) -> None:
    drawn = np.random.default_rng(0).multinomial(n, shares, 2000)
    found = [intervals.newcombe(*map(int, cells)) for cells in drawn]
    held = np.mean([low <= shares[1] - shares[2] <= high for low, high in found])
    assert held > 0.95 - 4 * (0.95 * 0.05 / 2000) ** 0.5


@given(a=st.integers(0, 400), b=st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(a: int, b: int) -> None:
    expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert intervals.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_by_its_definition(p: list[float]) -> None:
    corrected = intervals.holm(p)
    for i, own in enumerate(p):
        # the largest of (m - rank) p over all that are not larger
        ordered = sorted(p)
        steps = [min(1.0, (len(p) - place) * value) for place, value in enumerate(ordered) if value <= own]
        assert corrected[i] == pytest.approx(max(steps))


def test_resamples_are_those_of_one_generator() -> None:
    drawn = np.random.default_rng([1, 50]).integers(50, size=(intervals.RESAMPLES, 50))
    expected = np.stack([np.bincount(row, minlength=50) for row in drawn])
    assert (intervals.resamples(50, stream=1) == expected).all()


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = RNG.normal(5, 2, 400)
    low, high = intervals.percentile_interval(float(values.mean()), calibration.mean(values).replicates)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


# --- calibration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saturated", [False, True])
def test_ece_is_torchmetrics(saturated: bool) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    p = PROBABILITIES.astype(np.float32)
    if saturated:  # confidence exactly 1.0, in a bin of its own
        p[:100] = np.eye(7, dtype=np.float32)[LABELS[:100] % 6]
    expected = multiclass_calibration_error(torch.tensor(p), torch.tensor(LABELS), num_classes=7, n_bins=15)
    assert calibration.ece(p.astype(np.float64), LABELS).value == pytest.approx(float(expected), abs=1e-6)


def test_replicates_are_the_statistic_of_resamples() -> None:
    for statistic in (calibration.ece, calibration.brier):
        replicates = statistic(PROBABILITIES, LABELS).replicates
        again = np.repeat(np.arange(300), intervals.resamples(300)[7])
        assert replicates[7] == pytest.approx(statistic(PROBABILITIES[again], LABELS[again]).value)


def test_adaptive_ece_by_hand_and_of_resamples() -> None:
    p, y = PROBABILITIES, LABELS
    gap = (p.max(1) - (p.argmax(1) == y))[np.argsort(p.max(1))]
    found = calibration.adaptive_ece(p, y)
    assert found.value == pytest.approx(np.abs(gap.reshape(15, 20).sum(1)).sum() / 300)
    again = np.repeat(np.arange(300), intervals.resamples(300)[3])
    assert found.replicates[3] == pytest.approx(calibration.adaptive_ece(p[again], y[again]).value)


def test_adaptive_ece_draws_a_picture_with_all_of_its_versions() -> None:
    found = calibration.adaptive_ece(PROBABILITIES, LABELS, versions=3)
    assert found.value == calibration.adaptive_ece(PROBABILITIES, LABELS).value
    pictures = np.repeat(np.arange(100), intervals.resamples(100)[3])
    again = (3 * pictures[:, None] + np.arange(3)).ravel()
    expected = calibration.adaptive_ece(PROBABILITIES[again], LABELS[again]).value
    assert found.replicates[3] == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 4, 14, 31])
def test_adaptive_ece_of_few_samples(n: int) -> None:
    gap = PROBABILITIES[:n].max(1) - (PROBABILITIES[:n].argmax(1) == LABELS[:n])
    found = calibration.adaptive_ece(PROBABILITIES[:n], LABELS[:n])
    if n <= 15:  # a bin a sample
        assert found.value == pytest.approx(np.abs(gap).mean())
    assert found.replicates.shape == (1000,)


def test_nll_and_brier_are_scikit_learns() -> None:
    from sklearn.metrics import log_loss

    assert calibration.nll(log_softmax(LOGITS, axis=1), LABELS).value == pytest.approx(
        log_loss(LABELS, PROBABILITIES, labels=range(7))
    )
    one_hot = np.eye(7)[LABELS]
    assert calibration.brier(PROBABILITIES, LABELS).value == pytest.approx(
        np.mean(np.sum((PROBABILITIES - one_hot) ** 2, axis=1))
    )


def test_log_softmax_survives_log_joints() -> None:
    logits = np.array([[-4000.0, -3900.0], [5000.0, 0.0]])
    assert rows.log_softmax(logits) == pytest.approx(log_softmax(logits, axis=1))


def test_temperature_finds_the_one_that_made_the_labels() -> None:
    logits = RNG.normal(0, 2, (20_000, 5))
    drawn = (softmax(logits, axis=1).cumsum(1) > RNG.random((20_000, 1))).argmax(1)
    found = calibration.fit_temperature(3 * logits, drawn)
    assert found.low < 3 < found.high
    assert found.value == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1e5, 1e8])
def test_the_temperature_of_scaled_logits_is_scaled(scale: float) -> None:
    found = calibration.fit_temperature(LOGITS, LABELS)
    assert calibration.fit_temperature(scale * LOGITS, LABELS) == pytest.approx(scale * np.array(found))
    shifted = scale * LOGITS + 1e3 * scale * RNG.normal(size=(len(LOGITS), 1))
    assert calibration.fit_temperature(shifted, LABELS) == pytest.approx(scale * np.array(found))


@pytest.mark.parametrize("much", [1e5, 1e30])
def test_a_class_that_is_masked_does_not_hide_the_temperature(much: float) -> None:
    found = calibration.fit_temperature(LOGITS, LABELS)
    masked = np.c_[LOGITS, np.full(len(LOGITS), -much)]
    assert calibration.fit_temperature(masked, LABELS) == pytest.approx(np.array(found))
    outlier = np.r_[LOGITS, much * np.eye(1, LOGITS.shape[1])]
    assert calibration.fit_temperature(outlier, np.r_[LABELS, 0]) == pytest.approx(np.array(found))


@pytest.mark.filterwarnings("error")
def test_logits_that_are_one_number_have_no_temperature() -> None:
    assert calibration.fit_temperature(np.zeros((6, 3)), np.arange(6) % 3) == (1, 1, 1)
    assert calibration.fit_temperature(np.array([[2.0, 2.0, 0.0], [3.0, 1.0, 0.0]]), np.array([1, 0])) == (
        1,
        1,
        1,
    )
    tied = np.repeat([[2.0, 2.0, 0.0], [0.0, 0.0, -1.0]], 8, 0)
    assert np.isfinite(calibration.fit_temperature(tied, np.r_[[0] * 8, [1, 2] * 4])).all()


def test_logits_say_nothing_where_no_finite_temperature_is_best() -> None:
    labels = np.array([0, 1])
    assert not calibration.uninformative(np.array([[1.0, 0.0], [0.9, 0.0]]), labels)
    assert calibration.uninformative(np.array([[0.9, 0.0], [1.0, 0.0]]), labels)


def test_no_temperature_where_all_are_right() -> None:
    assert calibration.fit_temperature(LOGITS, LOGITS.argmax(1)) == (1, 1, 1)


@pytest.mark.filterwarnings("error")
def test_the_interval_of_a_temperature_that_nothing_fixes_is_all_that_is_sought():
    logits = RNG.normal(size=(100, 10))
    found = calibration.fit_temperature(
        logits, logits.argmin(1)
    )  # always wrong: ever larger T is ever better
    lead = np.median(logits.max(1) - np.partition(logits, -2)[:, -2])
    assert found.value == pytest.approx(np.exp(8) * lead, rel=1e-3)
    assert (found.low, found.high) == pytest.approx((np.exp(-8) * lead, np.exp(8) * lead))
    assert calibration.uninformative(logits, logits.argmin(1))


# --- foreign pictures --------------------------------------------------------------------------------


def sklearn_detection(own: np.ndarray, foreign: np.ndarray) -> ood.Detection:
    from sklearn.metrics import (
        auc,
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    is_own = np.r_[np.ones(len(own)), np.zeros(len(foreign))]
    score = np.r_[own, foreign]

    def aupr(positive: np.ndarray, score: np.ndarray) -> float:
        precision, recall, _ = precision_recall_curve(positive, score)
        return auc(recall, precision)

    def fpr95(positive: np.ndarray, score: np.ndarray) -> float:
        fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
        return fpr[np.argmax(tpr >= 0.95)]

    return ood.Detection(
        roc_auc_score(is_own, score), aupr(is_own, score), aupr(1 - is_own, -score),
        average_precision_score(is_own, score), average_precision_score(1 - is_own, -score),
        fpr95(is_own, score), fpr95(1 - is_own, -score),
    )  # fmt: skip


@settings(deadline=None)
@given(own=numbers, foreign=numbers)
def test_detection_is_scikit_learns_ties_and_all(own: list[int], foreign: list[int]) -> None:
    own_scores, foreign_scores = np.array(own, float), np.array(foreign, float)
    expected = sklearn_detection(own_scores, foreign_scores)
    assert tuple(map(float, ood.detection(own_scores, foreign_scores))) == pytest.approx(tuple(expected))


def test_auroc_is_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    own, foreign = RNG.random(80), RNG.random(60) - 0.3
    given_scores = torch.sigmoid(torch.tensor(np.r_[own, foreign]))
    expected = binary_auroc(given_scores, torch.tensor([1] * 80 + [0] * 60))
    assert float(ood.detection(own, foreign).auroc) == pytest.approx(float(expected), abs=1e-6)


def test_detection_replicates_are_those_of_resamples() -> None:
    own, foreign = RNG.normal(1, 1, 70).round(1), RNG.normal(0, 1, 70).round(1)
    resampled = ood.detection_resampled(own, foreign)
    again_own = np.repeat(own, intervals.resamples(70)[11])
    again_foreign = np.repeat(foreign, intervals.resamples(70, stream=1)[11])
    expected = ood.detection(again_own, again_foreign)
    assert [v[11] for v in resampled] == pytest.approx([float(v) for v in expected])


def test_perfect_and_hopeless_scores() -> None:
    own, foreign = np.arange(10.0, 20), np.arange(10.0)
    assert [float(v) for v in ood.detection(own, foreign)] == [1, 1, 1, 1, 1, 0, 0]
    assert float(ood.detection(foreign, own).auroc) == 0
    assert float(ood.detection(np.ones(5), np.ones(8)).auroc) == 0.5


# --- gradients ---------------------------------------------------------------------------------------


def test_two_sides_that_never_mix_leave_room_for_doubt() -> None:
    own, foreign = np.arange(128) + 1000.0, np.arange(400.0)
    found = ood.least_intervals(own, foreign)
    assert 0.94 < found["auroc"].low < 0.98
    assert found["auroc"].high == 1
    assert found["fpr95_at_id_tpr"] == intervals.wilson(0, 400)
    assert found["fpr95_at_ood_tpr"] == intervals.wilson(0, 128)
    one_above_all = np.mean([k / (k + 1) for k in range(1, 129)])
    assert found["average_precision_in"] == (pytest.approx(one_above_all), 1)


def test_intervals_of_detection_hold_the_truth_where_mixing_is_rare() -> None:
    rng = np.random.default_rng(0)
    gap, n = 4.3, 128
    truth = {
        "auroc": stats.norm.cdf(gap / 2**0.5),
        "fpr95_at_id_tpr": stats.norm.sf(stats.norm.ppf(0.05) + gap),
    }
    held: dict[str, list[bool]] = {metric: [] for metric in truth}
    for _ in range(60):
        own, foreign = rng.normal(gap, 1, n), rng.normal(0, 1, n)
        least, found = ood.least_intervals(own, foreign), ood.resampled(own, foreign)
        for metric, true in truth.items():
            low, high = intervals.percentile_interval(found[metric].value, found[metric].replicates)
            held[metric].append(min(low, least[metric].low) <= true <= max(high, least[metric].high))
    assert {metric: np.mean(each) >= 0.95 for metric, each in held.items()} == dict.fromkeys(truth, True)


@pytest.mark.parametrize(("gap", "n", "m"), [(3.0, 128, 64), (4.5, 64, 64), (0.0, 100, 100)])
def test_intervals_of_areas_under_precision_hold_the_truth(gap: float, n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    truth = ood.detection(rng.normal(gap, 1, 100_000), rng.normal(0, 1, 100_000 * m // n))
    held: dict[str, list[bool]] = {metric: [] for metric in ood.AREAS_UNDER_PRECISION}
    for _ in range(80):
        own, foreign = rng.normal(gap, 1, n), rng.normal(0, 1, m)
        least, found = ood.least_intervals(own, foreign), ood.resampled(own, foreign)
        for metric, each in held.items():
            low, high = intervals.area_interval(*found[metric], n + m)
            each.append(
                min(low, least[metric].low) <= getattr(truth, metric) <= max(high, least[metric].high)
            )
    assert {metric: np.mean(each) >= 0.925 for metric, each in held.items()} == dict.fromkeys(held, True)


def test_the_interval_of_an_area_lies_within_0_and_1_and_reaches_further_down() -> None:
    replicates = np.random.default_rng(0).beta(400, 4, 1000)
    low, high = intervals.area_interval(0.99, replicates, 400)
    assert 0 < low < 0.99 < high < 1
    assert 0.99 - low > 2 * (high - 0.99)  # skewed away from 1
    mirrored = intervals.area_interval(0.01, 1 - replicates, 400)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert intervals.area_interval(1.0, np.ones(1000), 40) == (1, 1)


def test_where_sides_mix_resamples_say_more_than_what_is_asked_at_least() -> None:
    rng = np.random.default_rng(1)
    own, foreign = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    low, high = intervals.percentile_interval(*ood.resampled(own, foreign)["auroc"])
    least = ood.least_intervals(own, foreign)["auroc"]
    assert high - low >= 0.95 * (least.high - least.low)


@pytest.mark.parametrize("n", [10, 30])
def test_a_bootstrap_test_of_few_samples_finds_no_more_than_chance_allows(n: int) -> None:
    rng = np.random.default_rng(0)
    p = np.array([paired_p(rng.normal(size=n)) for _ in range(3000)])
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.015)
    assert np.mean(p < 0.01) == pytest.approx(0.01, abs=0.007)


def paired_p(differences: np.ndarray) -> float:
    replicates = intervals.resampled_sums(differences[:, None])[:, 0] / len(differences)
    return intervals.bootstrap_p(float(differences.mean()), replicates, len(differences))


def test_a_difference_that_no_resample_changes_is_as_sure_as_its_samples_are_many() -> None:
    assert paired_p(np.full(12, 0.25)) == 2.0**-11
    assert paired_p(np.zeros(12)) == 1


def test_guidance_gain_and_psnr_by_hand() -> None:
    import pandas as pd

    table = pd.DataFrame({
        "reference_error": [4.0, 6.0], "guided_error": [3.0, 6.0],
        "model_error": [1.0, 1.0], "wiener_error": [10.0, 10.0], "dims": [100, 100],
    })  # fmt: skip
    assert denoising.guidance_gain(table).value == pytest.approx(0.1)
    assert denoising.psnr(table, "model_error").value == pytest.approx(20)  # MSE 0.01, peak 1
    gain = denoising.psnr_gain(table)
    assert gain.value == pytest.approx(10)
    assert gain.replicates == pytest.approx(10)  # the same noise: no spread between the two


# --- comparisons -------------------------------------------------------------------------------------


def rate(model: str, right: np.ndarray) -> Estimate:
    metric = Metric(model, "clean", "", "accuracy", right.mean(), 0, 1, len(right), "", True)
    return Estimate(metric, np.arange(len(right)), right=right)


def test_equal_models_do_not_differ_and_unequal_ones_do() -> None:
    good, bad = np.arange(200) < 190, np.arange(200) < 100
    found = compare([rate("a", good), rate("b", good), rate("c", bad)], [ACCURACY])
    p = {(t.model_a, t.model_b): t.p_holm for t in found}
    assert p["a", "b"] == 1
    assert p["a", "c"] < 1e-10
    (test,) = [t for t in found if (t.model_a, t.model_b) == ("a", "c")]
    assert (test.only_a, test.only_b, test.difference) == (90, 0, pytest.approx(0.45))
    assert test.ci_low < 0.45 < test.ci_high


def test_models_are_compared_on_the_samples_that_both_have() -> None:
    half = rate("b", np.ones(50, dtype=bool))
    (test,) = compare([rate("a", np.ones(100, dtype=bool)), half], [ACCURACY])
    assert test.n == 50
