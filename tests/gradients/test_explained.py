"""The explained attack on a Gaussian mixture: span and branches in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian_mixture import Bent, D, Exact, K, Mixture, Round, right_ones

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.denoisers import EDMDenoiser
from robustgen.classifiers.diffusion import DiffusionClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.pipelines import PipelineClassifier
from robustgen.draws import Draws
from robustgen.gradients import Explained
from robustgen.gradients.explained import (
    INTEGRATE_OVER_SIGMA,
    denoiser_follows_from_logits,
    schema,
    share_in_span,
)
from robustgen.types import ConditionalNoise


class TwoBranches(Classifier):
    """Logits whose gradient is ``scale`` times the true one, and a denoiser beside them that is exact."""

    num_classes, input_shape, noise = K, (1, 2, 3), ConditionalNoise(0.05, 1.0)

    def __init__(self, mixture, scale):
        super().__init__()
        self.bent, self.exact = Bent(mixture, scale), Exact(mixture)

    def logits(self, x, sigma=None):
        return self.bent.logits(x, sigma)

    def denoise(self, x, sigma, y=None):
        return self.exact.denoise(x, sigma, y)


def read(model, mixture, sigmas=(0.3,), n=60, pictures=0):
    x, y = right_ones(mixture, n)
    draws = Draws(0, "explained", torch.arange(len(x)))
    return Explained(sigmas, Exact(mixture), pictures)(model, x, y, draws).to_pandas()


def test_the_true_posteriors_attack_lies_in_the_span_of_the_denoisers_differences():
    table = read(Round(), Round(), (0.1, 0.5))
    np.testing.assert_allclose(table["share"], 1, atol=1e-4)
    chance = table.groupby("sample_id")["random_share"].mean().mean()
    assert chance == pytest.approx((K - 1) / D, abs=0.1)


def test_an_attack_beside_the_span_has_no_share_of_it():
    mixture = Round()
    across = torch.linalg.svd(mixture.means[1:] - mixture.means[0])[2][-1]  # orthogonal to all differences

    class Beside(Classifier):
        num_classes, input_shape = K, (1, 2, 3)

        def logits(self, x, sigma=None):
            along = (x.double().flatten(1) - 0.5) @ across
            return torch.stack([-along, along, -100 + 0 * along], 1)

    x = 0.5 + 0.05 * across.view(1, 1, 2, 3).expand(4, -1, -1, -1).float()
    y = torch.ones(4, dtype=torch.int64)
    draws = Draws(0, "explained", torch.arange(4))
    table = Explained((0.3,), Exact(mixture), 0)(Beside(), x, y, draws).to_pandas()
    np.testing.assert_allclose(table["share"], 0, atol=1e-6)
    np.testing.assert_allclose(table["distance"], 0.05, rtol=1e-2)


def test_classes_that_are_not_the_references_first_are_asked_for_by_their_numbers_there():
    mixture = Round()

    class LastTwo(Classifier):
        num_classes, input_shape = 2, (1, 2, 3)

        def logits(self, x, sigma=None):
            return mixture.logits(x)[:, 1:]

    x, y = right_ones(mixture, 60)
    x, y = x[y > 0], y[y > 0] - 1
    readout = Explained((0.3,), Exact(mixture), 0, numbers=[1, 2])
    table = readout(LastTwo(), x, y, Draws(0, "explained", torch.arange(len(x)))).to_pandas()
    np.testing.assert_allclose(table["share"], 1, atol=1e-4)


def test_share_is_pythagoras():
    generator = torch.Generator().manual_seed(1)
    vectors, span = (torch.randn(5, *s, generator=generator, dtype=torch.float64) for s in ((6,), (2, 6)))
    span = torch.cat([span, span[:, :1] * 2], 1)  # a row that adds nothing
    left = vectors - (span.mT @ torch.linalg.pinv(span.mT) @ vectors[:, :, None])[:, :, 0]
    expected = 1 - left.square().sum(1) / vectors.square().sum(1)
    torch.testing.assert_close(share_in_span(vectors, span), expected)
    assert bool(share_in_span(torch.zeros(1, 6).double(), span[:1]).isnan())


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_two_branches_agree_as_far_as_they_do(scale):
    mixture = Mixture()
    table = read(TwoBranches(mixture, scale), mixture, (0.1, 0.5))
    table = table[table["difference_square"] > 1e-6]  # where classes are sure, both are rounding alone
    assert len(table) > 40
    gradient, difference = table["gradient_square"] ** 0.5, table["difference_square"] ** 0.5
    np.testing.assert_allclose(table["agreement_dot"] / (gradient * difference), np.sign(scale), atol=1e-3)
    np.testing.assert_allclose(gradient / difference, abs(scale), rtol=1e-3)


def test_what_agrees_by_construction_is_no_result():
    mixture = Mixture()
    assert denoiser_follows_from_logits(mixture)
    assert denoiser_follows_from_logits(FixedBatch(mixture, 8))
    assert not denoiser_follows_from_logits(TwoBranches(mixture, 1.0))
    assert read(mixture, mixture, n=8)["agreement_dot"].isna().all()


def test_a_margin_that_integrates_over_noise_has_no_radius():
    denoiser = EDMDenoiser(3, (1, 4, 4), widths=(4,), blocks=1)
    denoiser.net.out.weight.data.normal_(std=0.1)
    model = DiffusionClassifier(denoiser, levels=1, low=0.1, high=1.0).eval().requires_grad_(False)
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    table = Explained((0.3,), denoiser, 2)(model, x, y, Draws(0, "explained", torch.arange(3))).to_pandas()
    assert table[["first_order", "distance", "share", "perturbation"]].isna().all().all()
    assert table["agreement_dot"].notna().all()
    assert issubclass(PipelineClassifier, INTEGRATE_OVER_SIGMA)
    assert [v is not None for v in table["own_right"]] == [True, True, False]


def test_stored_pictures_are_what_the_numbers_say():
    mixture = Round()
    x, y = right_ones(mixture, 12)
    table = read(mixture, mixture, (0.3,), 12, pictures=4)
    assert list(table.columns) == schema().names
    for row in table.to_dict("records")[:4]:
        i = row["sample_id"]
        noisy = torch.tensor(np.array(row["noisy"]), dtype=torch.float64).view(1, 1, 2, 3)
        each, mean = mixture.exact(noisy, 0.3)
        np.testing.assert_allclose(row["right"], (each[0, y[i]] - mean[0]), atol=1e-5)
        np.testing.assert_allclose(row["other"], (each[0, row["other_label"]] - mean[0]), atol=1e-5)
        np.testing.assert_allclose(row["own_other"], row["other"], atol=1e-5)
        assert np.linalg.norm(row["perturbation"]) == pytest.approx(row["distance"], rel=1e-4)
        wrong = x[i].flatten() + torch.tensor(np.array(row["perturbation"]), dtype=torch.float32)
        assert int(mixture.logits(wrong.view(1, 1, 2, 3)).argmax()) == row["other_label"] != y[i]
    assert table["noisy"][4:].isna().all()
