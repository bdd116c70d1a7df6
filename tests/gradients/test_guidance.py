"""The guidance readout on a Gaussian mixture, whose posterior, denoisers and gains are known exactly."""

import pyarrow.compute as pc
import pytest
import torch
from gaussian_mixture import SHAPE, Bent, D, Exact, K, Mixture

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.gradients import Guidance, class_gradient, schema
from robustgen.types import FixedNoise


@pytest.fixture(scope="module")
def mixture():
    return Mixture()


def read(model, n=64, sigmas=(0.3,), pictures=0, reference=None, wiener=None, start=0, seed=0):
    mixture = Mixture()
    x, y = mixture.sample(n)
    ids = torch.arange(start, n)
    readout = Guidance(sigmas, reference or Exact(mixture), wiener or Exact(mixture), pictures)
    draws = Draws(seed, "gradients", ids)
    return readout(model, x[start:].float(), y[start:], draws)


def gain(table):
    return pc.mean(pc.subtract(table["reference_error"], table["guided_error"])).as_py()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_class_gradient_is_the_difference_of_exact_denoisers(mixture, sigma):
    x, y = mixture.sample(200)
    noisy = x + sigma * torch.randn(x.shape, dtype=torch.float64)
    each, mean = mixture.exact(noisy, sigma)
    difference = each[torch.arange(len(y)), y] - mean
    identity = sigma**2 * class_gradient(mixture, noisy, y, sigma).flatten(1)
    assert float((identity - difference).abs().max()) < 1e-9
    assert float(difference.abs().max()) > 1e-3


def test_denoiser_jacobian_is_symmetric_positive_semidefinite(mixture):
    """It is Cov[x0 | x] / sigma^2."""
    x, _ = mixture.sample(5)
    for picture in x[:, None]:
        jacobian = torch.autograd.functional.jacobian(lambda v: mixture.exact(v, 0.3)[1], picture).view(D, D)
        assert torch.allclose(jacobian, jacobian.T, atol=1e-10)
        assert float(torch.linalg.eigvalsh(jacobian).min()) > -1e-12


def test_gain_of_the_true_posterior_is_the_drop_of_the_mean_square_error(mixture):
    """E|x - D(y)|^2 - E|x - D(y, label)|^2, the latter known in closed form; other gradients gain less."""
    sigma, n = 0.3, 5_000
    table = read(mixture, n, (sigma,))
    noisy = mixture.covariances + sigma**2 * torch.eye(D, dtype=torch.float64)
    remaining = sigma**2 * torch.einsum("kij,kji->k", mixture.covariances, noisy.inverse())
    with_label = float((mixture.weights * remaining).sum())
    assert pc.mean(table["guided_error"]).as_py() == pytest.approx(with_label, rel=0.04)
    assert gain(table) == pytest.approx(pc.mean(table["reference_error"]).as_py() - with_label, rel=0.1)
    assert pc.mean(table["model_error"]).as_py() == pytest.approx(pc.mean(table["reference_error"]).as_py())
    for other in (Bent(mixture, 0.5), Bent(mixture, 1.5), Bent(mixture, -1.0), Bent(mixture, roll=1)):
        assert gain(read(other, n, (sigma,))) < 0.9 * gain(table)
    assert gain(read(Bent(mixture, 2.0), n, (sigma,))) == pytest.approx(0, abs=0.15 * gain(table))


def test_columns_by_what_the_model_offers(mixture):
    table = read(mixture, 8, (0.3, 2.0))  # 2.0 lies outside the mixture's levels
    assert table.schema == schema()
    assert table["sample_id"].to_pylist() == [*range(8), *range(8)]
    assert table["sigma"].to_pylist() == [0.3] * 8 + [2.0] * 8
    assert set(table["dims"].to_pylist()) == {D}
    for name in ("guided_error", "model_error", "guidance_norm"):
        assert [v is None for v in table[name].to_pylist()] == [False] * 8 + [True] * 8
    assert table["reference_error"].null_count == table["wiener_error"].null_count == 0

    plain = PlainClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, K)), K, SHAPE)
    for noise in (plain.noise, FixedNoise(0.03)):  # never noise-conditional: read at any sigma, no denoiser
        plain.noise = noise
        table = read(plain, 8, (0.3, 2.0))
        assert table["guided_error"].null_count == 0
        assert table["model_error"].null_count == 16
    logits_only = read(Bent(mixture), 8)
    assert logits_only["model_error"].null_count == 8
    assert logits_only["guided_error"].null_count == 0
    assert len(read(mixture, 8, ())) == 0


def test_stored_pictures_recompute_the_errors(mixture):
    table = read(mixture, 8, (0.5, 0.3, 0.2), pictures=5, start=2).to_pylist()
    assert [row["sigma"] for row in table if row["noisy"]] == [0.3] * 3
    x = mixture.sample(8)[0].float().flatten(1)
    for row in table:
        if row["sample_id"] >= 5 or row["sigma"] != 0.3:
            assert row["noisy"] is row["reference"] is row["guidance"] is None
            continue
        clean, noisy, reference, guidance = (
            torch.as_tensor(v) for v in (x[row["sample_id"]], row["noisy"], row["reference"], row["guidance"])
        )
        assert (clean - reference).square().sum() == pytest.approx(row["reference_error"], rel=1e-5)
        assert (clean - reference - guidance).square().sum() == pytest.approx(row["guided_error"], rel=1e-5)
        assert guidance.norm() == pytest.approx(row["guidance_norm"], rel=1e-5)
        assert torch.allclose(mixture.exact(noisy[None], 0.3)[1][0].float(), reference, atol=1e-6)


def test_a_sample_sees_the_same_noise_whatever_the_model_and_its_neighbours(mixture):
    torch.manual_seed(0)
    plain = PlainClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, K)), K, SHAPE)
    fixed = [FixedBatch(model, 8) for model in (mixture, plain)]
    whole, other = (read(model, 12, (0.3, 0.5), pictures=12).to_pylist() for model in fixed)
    for column in ("noisy", "reference_error"):
        assert [r[column] for r in whole] == [r[column] for r in other]
    reseeded = read(mixture, 12, pictures=12, seed=1).to_pylist()
    assert whole[0]["reference_error"] != reseeded[0]["reference_error"]
    part = read(fixed[0], 12, (0.3, 0.5), pictures=12, start=5).to_pylist()
    by_key = {(r["sample_id"], r["sigma"]): r for r in whole}
    assert part == [by_key[r["sample_id"], r["sigma"]] for r in part]


def test_denoisers_too_are_called_at_the_fixed_batch_size(mixture):
    sizes = []

    class Spy(Exact):
        def denoise(self, x, sigma, y=None):
            sizes.append(len(x))
            return super().denoise(x, sigma, y)

    read(FixedBatch(mixture, 8), 21, reference=Spy(mixture), wiener=Spy(mixture))
    assert set(sizes) == {8}


@pytest.mark.parametrize("way_back", [False, True])
def test_a_model_that_nothing_leads_back_from_has_the_gradient_0(way_back):
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(K), requires_grad=way_back)

        def forward(self, x):
            return x.detach().flatten(1)[:, :K] + self.bias

    table = read(PlainClassifier(Cut(), K, SHAPE), 8)
    assert table["guidance_norm"].to_pylist() == [0] * 8
    assert table["guided_error"] == table["reference_error"]
