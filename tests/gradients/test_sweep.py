"""Half the integral of the guidance gain is the drop of the cross-entropy, for the true posterior alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from gaussian_mixture import Bent, D, Exact, K, Mixture

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.gradients import Sweep
from robustgen.metrics import gradient_statistics

SIGMAS = np.geomspace(0.06, 0.95, 14).tolist()


def swept(model, n=8_000, sigmas=SIGMAS, start=0):
    mixture = Mixture()
    x, y = mixture.sample(n)
    draws = Draws(0, "efficiency", torch.arange(start, n))
    return Sweep(sigmas, Exact(mixture))(model, x[start:].float(), y[start:], draws).to_pandas()


def efficiency(table):
    sides = gradient_statistics.information(table)
    return gradient_statistics.ratio(sides.gradient, sides.label, np.arange(len(sides.ids)))


@pytest.fixture(scope="module")
def true():
    return swept(Mixture())


def test_the_true_posteriors_gradient_accounts_for_all_that_it_knows(true):
    found = efficiency(true)
    low, high = np.quantile(found.replicates, [0.025, 0.975])
    assert low < 1 < high
    assert high - low < 0.1
    assert found.value == pytest.approx(1, abs=0.03)
    sides = gradient_statistics.information(true)
    assert sides.label.mean() > 0.2  # nats: there is something to account for


def test_other_gradients_account_for_less(true):
    """Scaled by s, the gain is 2 s - s^2 of the true one's, and the cross-entropy is the same."""
    scale = 0.5
    found = efficiency(swept(Bent(Mixture(), scale)))
    assert found.value == pytest.approx((2 * scale - scale**2) * efficiency(true).value, abs=0.03)
    assert efficiency(swept(Bent(Mixture(), -1.0), 1000)).value < -2


def test_the_integral_over_gamma_is_known_in_closed_form():
    """G = 1 / (1 + gamma)^2 has the integral 1 / (1 + a) - 1 / (1 + b)."""
    gamma = np.geomspace(1, 400, 14)
    table = pd.DataFrame(
        {
            "sample_id": np.repeat(np.arange(30), 14), "sigma": np.tile(gamma**-0.5, 30),
            "reference_error": np.tile(1 + (1 + gamma) ** -2.0, 30), "guided_error": 1.0,
            "cross_entropy": np.tile(np.linspace(0.3, 2.3, 14)[::-1], 30),
        }
    )  # fmt: skip
    sides = gradient_statistics.information(table)
    np.testing.assert_allclose(sides.gradient, (1 / 2 - 1 / 401) / 2, rtol=0.02)
    np.testing.assert_allclose(sides.label, 2.0)


def test_cross_entropy_and_errors_are_the_models_own():
    model = Mixture()
    table = swept(model, 32, [0.1, 0.5])
    x, y = model.sample(32)
    noise = Draws(0, "efficiency", torch.arange(32)).normal(1, 2, 3)
    for sigma, part in table.groupby("sigma"):
        noisy = x.float() + sigma * noise
        log_p = model.logits(noisy, sigma).log_softmax(1)[torch.arange(32), y]
        np.testing.assert_allclose(part["cross_entropy"], -log_p, rtol=1e-5, atol=1e-6)
        each, mean = model.exact(noisy, sigma)
        found = (x.flatten(1) - each[torch.arange(32), y]).square().sum(1)
        np.testing.assert_allclose(part["guided_error"], found, rtol=1e-4)
        np.testing.assert_allclose(part["reference_error"], (x.flatten(1) - mean).square().sum(1), rtol=1e-4)


def test_levels_outside_the_models_own_are_left_out_and_rows_belong_to_samples():
    assert set(swept(Mixture(), 8, [0.3, 2.0])["sigma"]) == {0.3}
    plain = PlainClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, K)), K, (1, 2, 3))
    assert set(swept(plain, 8, [0.3, 2.0])["sigma"]) == {0.3, 2.0}
    fixed = FixedBatch(Mixture(), 8)
    whole, part = swept(fixed, 12, [0.3]), swept(fixed, 12, [0.3], start=5)
    pd.testing.assert_frame_equal(whole[5:].reset_index(drop=True), part)


def test_a_model_that_knows_few_levels_of_the_sweep_has_no_integral():
    low, high = SIGMAS[:11], [2.0, 3.0, 4.0]  # the model's levels end at 1
    assert gradient_statistics.information(swept(Mixture(), 8, low + high)) is None
    assert gradient_statistics.information(swept(Mixture(), 8, SIGMAS[:12])) is not None
