"""The Wiener filter against the exact posterior mean, and the U-Net's preconditioning in closed form."""

import pytest
import torch

from robustgen.classifiers.denoisers import EDMDenoiser, SharedDenoiser, Wiener
from robustgen.errors import UnsupportedError, UserError

SHAPE = (1, 3, 4)
D = 12


def gaussian_pictures(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = 0.2 * torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = 0.5 + torch.randn(n, D, generator=generator, dtype=torch.float64) @ mixing
    return x.view(n, *SHAPE), mixing.T @ mixing


def test_wiener_is_the_exact_posterior_mean_of_the_fitted_gaussian():
    images, _ = gaussian_pictures(200)
    flat = images.flatten(1)
    mean, covariance = flat.mean(0), torch.cov(flat.T, correction=0)
    noisy = images[:7] + 0.3 * torch.randn(7, *SHAPE, dtype=torch.float64)
    for sigma in (0.01, 0.3, 2.0):
        # precision form of the Gaussian posterior: another way to the same mean
        precision = covariance.inverse() + torch.eye(D, dtype=torch.float64) / sigma**2
        right = covariance.inverse() @ mean + noisy.flatten(1) / sigma**2
        expected = torch.linalg.solve(precision, right.T).T.view_as(noisy)
        assert torch.allclose(Wiener(images).denoise(noisy, sigma), expected, atol=1e-10)


def test_wiener_reaches_the_minimum_mean_square_error_of_gaussian_data():
    images, covariance = gaussian_pictures(40_000)
    sigma = 0.25
    generator = torch.Generator().manual_seed(1)
    noisy = images + sigma * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    error = float((Wiener(images).denoise(noisy, sigma) - images).square().flatten(1).sum(1).mean())
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert error == pytest.approx(float((eigenvalues * sigma**2 / (eigenvalues + sigma**2)).sum()), rel=0.01)


def test_wiener_at_the_ends_of_the_noise_scale():
    images, _ = gaussian_pictures(200)
    images = images.float()
    wiener, noisy = Wiener(images), images[:5] + 0.1
    assert torch.allclose(wiener(noisy, 0.0), noisy, atol=1e-6)
    assert torch.allclose(wiener(noisy, 1e6), images.mean(0).expand(5, *SHAPE), atol=1e-4)
    constant = Wiener(torch.full((9, *SHAPE), 0.5))  # no variance in any direction
    assert torch.equal(constant(noisy, 0.0), torch.full((5, *SHAPE), 0.5))


def test_wiener_takes_a_noise_level_for_each_picture_and_refuses_labels():
    images, _ = gaussian_pictures(50)
    wiener, noisy = Wiener(images), images[:2].float()
    both = wiener(noisy, torch.tensor([0.1, 0.7]))
    assert both.dtype == torch.float32
    assert torch.allclose(both[1:], wiener(noisy[1:], 0.7), atol=1e-6)
    with pytest.raises(UnsupportedError, match="no labels"):
        wiener(noisy, 0.1, torch.tensor([0, 1]))


def test_untrained_unet_is_the_scalar_wiener_filter():
    images, _ = gaussian_pictures(100)
    images = images.float()
    model = EDMDenoiser(3, SHAPE, widths=(8, 8), blocks=1)
    model.fit_scale(images)
    mean = images.mean(0)
    variance = float((images - mean).square().mean())
    for sigma in (0.01, 0.5, 1.0):
        expected = mean + variance / (variance + sigma**2) * (images - mean)
        assert torch.allclose(model(images, sigma), expected, atol=1e-5)


def test_unet_knows_labels_levels_and_odd_sizes():
    torch.manual_seed(0)
    model = EDMDenoiser(3, (3, 7, 7), widths=(8, 12, 16), blocks=1)
    for name, weight in model.named_parameters():
        if "out.weight" in name or "modulation.weight" in name:  # they start at 0
            torch.nn.init.normal_(weight, std=0.3)
    x = torch.rand(4, 3, 7, 7)
    out = model(x, torch.tensor([0.01, 0.1, 0.5, 1.0]), torch.tensor([0, 1, 2, 0]))
    assert out.shape == x.shape
    assert torch.allclose(out[1:2], model(x[1:2], 0.1, torch.tensor([1])), atol=1e-5)
    assert not torch.allclose(out[1:2], model(x[1:2], 0.1), atol=1e-3)
    assert torch.equal(model(x, 0.1), model(x, 0.1, torch.full((4,), 3)))  # 3: the null label
    for outside in (0.001, 1.1):
        with pytest.raises(UnsupportedError, match="outside the noise levels"):
            model(x, outside)


def test_detail_passes_the_unet_by_its_skips():
    torch.manual_seed(0)
    model = EDMDenoiser(3, SHAPE, widths=(8, 8), blocks=1)
    torch.nn.init.normal_(model.net.out.weight)
    for weight in model.net.up.parameters():
        torch.nn.init.zeros_(weight)  # nothing comes up from the smaller pictures
    u, levels, labels = torch.randn(1, *SHAPE), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    moved = u.clone()
    moved[0, 0, 1, 1] += 1
    change = model.net(moved, levels, labels) - model.net(u, levels, labels)
    assert float(change[0, 0, 1, 1].detach().abs()) > 1e-3


def test_pixels_enter_and_leave_in_patches():
    torch.manual_seed(0)
    model = EDMDenoiser(3, (3, 8, 8), widths=(8, 8), blocks=1, patch=2)
    seen = []
    model.net.down[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model(x, 1.0), EDMDenoiser(3, (3, 8, 8))(x, 1.0))  # untrained: scalar Wiener both
    assert seen[0].shape == (2, 12, 4, 4)
    with torch.no_grad():
        model.net.out.bias.copy_(torch.arange(12.0))  # channel c, row i, column j of a patch: 4 c + 2 i + j
        out = model.net(x, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(out[0, :, 2:4, 4:6], torch.arange(12.0).view(3, 2, 2))


def shared(patch=1):
    torch.manual_seed(0)
    model = SharedDenoiser(3, (3, 8, 8), widths=(8, 12), blocks=1, patch=patch)
    for name, weight in model.named_parameters():
        if "out." in name or "heads." in name or "modulation.weight" in name:  # they start at 0
            torch.nn.init.normal_(weight, std=0.3)
    return model.requires_grad_(False)


@pytest.mark.parametrize("patch", [1, 2])
def test_one_pass_denoises_under_every_label(patch):
    model, passes = shared(patch), []
    model.net.down[0].register_forward_hook(lambda *_: passes.append(1))
    x, sigma = torch.rand(4, 3, 8, 8), torch.tensor([0.01, 0.1, 0.5, 1.0])
    each = model.denoise_each(x, sigma)
    assert each.shape == (4, 4, 3, 8, 8)
    assert passes == [1]
    for label in range(3):
        assert torch.equal(model(x, sigma, torch.full((4,), label)), each[:, label])
        assert not torch.allclose(each[:, label], each[:, 3], atol=1e-3)
    assert torch.equal(model(x, sigma), each[:, 3])
    rows, labels = torch.tensor([2, 2, 0]), torch.tensor([0, 3, 1])
    passes.clear()
    assert torch.equal(model.denoise_pairs(x, sigma, rows, labels), each[rows, labels])
    assert passes == [1]
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        model.denoise_each(x, 1.1)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_head_adds_to_what_stands_for_no_label(patch):
    model = shared(patch)
    x = torch.rand(2, 3, 8, 8)
    before = model.denoise_each(x, 0.5)
    # class 1, channel 2: its outputs stand together, as those of pixel_shuffle do
    first = (1 * 3 + 2) * patch**2
    model.heads.bias[first : first + patch**2] += 1
    change = model.denoise_each(x, 0.5) - before
    c_out = 0.5 * 0.25 / (0.5**2 + 0.25**2) ** 0.5
    expected = torch.zeros_like(change)
    expected[:, 1, 2] = c_out
    assert torch.allclose(change, expected, atol=1e-5)


def test_the_weights_of_a_denoiser_that_takes_labels_begin_as_its_unconditional_side():
    model, other = shared(), EDMDenoiser(3, (3, 8, 8), widths=(8, 12), blocks=1)
    for name, weight in other.named_parameters():
        if "out." in name or "modulation.weight" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.heads.weight.zero_()
    model.heads.bias.zero_()
    missing = model.load_state_dict(other.state_dict(), strict=False)
    assert missing.missing_keys == ["heads.weight", "heads.bias"]
    assert missing.unexpected_keys == []
    x = torch.rand(4, 3, 8, 8)
    for label in range(3):
        assert torch.allclose(model(x, 0.3, torch.full((4,), label)), other(x, 0.3), atol=1e-6)


def test_pairs_of_a_denoiser_that_takes_labels_are_calls_of_their_own():
    model = EDMDenoiser(3, (3, 7, 7), widths=(8, 12, 16), blocks=1)
    for name, weight in model.named_parameters():
        if "out.weight" in name or "modulation.weight" in name:
            torch.nn.init.normal_(weight, std=0.3)
    x, sigma = torch.rand(4, 3, 7, 7), torch.tensor([0.01, 0.1, 0.5, 1.0])
    rows, labels = torch.tensor([3, 3, 1]), torch.tensor([0, 2, 1])
    pairs = model.denoise_pairs(x, sigma, rows, labels)
    for pair, row, label in zip(pairs, rows, labels, strict=True):
        alone = model(x[row][None], sigma[row], label[None])[0]
        assert torch.allclose(pair, alone, atol=1e-5)
    assert torch.equal(model.denoise_pairs(x, 0.1, rows, labels), model(x[rows], 0.1, labels))


@pytest.mark.parametrize("patch", [0, 3])
def test_a_patch_must_divide_the_picture(patch):
    with pytest.raises(UserError, match="patches") as error:
        EDMDenoiser(3, (3, 8, 8), patch=patch)
    assert "8 and 8" in str(error.value)
