"""The stand-in for the package autoattack, under robustbench's own benchmark."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from robustgen.classifiers import external, upstream_autoattack
from robustgen.errors import UserError

EPS = 8 / 255


def write_cifar10(folder, images, labels, monkeypatch):
    """Files in the layout of CIFAR-10's archive, and torchvision told their checksums."""
    from torchvision.datasets import CIFAR10

    base = folder / CIFAR10.base_folder
    base.mkdir()

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", {"data": images, "labels": labels})])
    _, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5})


@pytest.fixture
def one_thread():
    """Square's thousands of tiny steps are slow when threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def linear_problem(tmp_path, monkeypatch, one_thread):
    """A linear model and CIFAR-shaped images, with each image's exact robustness at EPS.

    A linear model's smallest Linf distance to another class is its margin over the L1 norm of the weights'
    difference; the pixels stay clear of 0 and 1, so the box does not add to it.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(80, 176, (6, 3 * 32 * 32), dtype=np.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(rng.normal(size=(10, 3 * 32 * 32))) / 100)
        model[1].bias.zero_()
        logits = model(torch.from_numpy(pixels).reshape(-1, 3, 32, 32) / 255)
        labels = logits.argmax(1)
        # The first image is robust, the second wrong, the others correct and easily broken.
        model[1].weight[:, :] *= 0.02
        model[1].weight[labels[0]] += torch.from_numpy(pixels[0] / 255.0 - pixels.mean(0) / 255.0) * 0.1
    labels[1] = (labels[1] + 1) % 10
    write_cifar10(tmp_path, pixels, labels.tolist(), monkeypatch)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).reshape(-1, 3, 32, 32) / 255)
        own = logits.gather(1, labels[:, None])
        weight = model[1].weight
        reach = (weight[labels][:, None] - weight[None]).abs().sum(-1)
        distance = ((own - logits) / reach).scatter(1, labels[:, None], torch.inf).amin(1)
    return model, tmp_path, distance


def test_robustbench_benchmark_runs_its_autoattack(linear_problem):
    robustbench = external.import_robustbench()
    model, folder, distance = linear_problem
    clean, robust = robustbench.benchmark(
        model, n_examples=6, data_dir=str(folder), eps=EPS, batch_size=4, log_path=str(folder / "log.txt")
    )
    assert clean == pytest.approx((distance > 0).float().mean().item())
    assert robust == pytest.approx((distance > EPS).float().mean().item())
    assert 0 < robust < clean < 1
    assert "robust accuracy after SQUARE" in (folder / "log.txt").read_text()


def test_robustbench_benchmark_reads_its_state_file(linear_problem):
    robustbench = external.import_robustbench()
    model, folder, distance = linear_problem
    arguments = {"n_examples": 6, "data_dir": str(folder), "eps": EPS, "aa_state_path": folder / "state.json"}
    _, robust = robustbench.benchmark(model, **arguments)
    assert robust == pytest.approx((distance > EPS).float().mean().item())
    with pytest.raises(UserError, match="cannot resume"):
        robustbench.benchmark(model, **arguments)


def test_stand_in_takes_upstreams_arguments(linear_problem):
    model, _, _ = linear_problem
    attack = upstream_autoattack.AutoAttack(
        model, "Linf", EPS, attacks_to_run=["apgd-ce"], version="custom", device="cpu", verbose=False
    )
    x, y = torch.full((2, 3, 32, 32), 0.5), torch.tensor([0, 1])
    x_adv, y_adv = attack.run_standard_evaluation(x, y, bs=2, return_labels=True)
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert y_adv.shape == y.shape
    with pytest.raises(UserError, match="TensorFlow"):
        upstream_autoattack.AutoAttack(model, is_tf_model=True)
