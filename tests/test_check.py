"""Each usual mistake, made on purpose in a net that is otherwise in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustgen import check, data, registry
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.user import import_file

HEAD = '''
import torch
from torch import nn
from robustgen import data

torch.manual_seed(0)
TRAIN = data.load("digits", "train")

class Net(nn.Module):
    """Nearest class mean, right for about 90 %: it needs no training and minds the range of its input."""
    def __init__(self, prepare=lambda x: x):
        super().__init__()
        pictures = prepare(TRAIN.images).flatten(1)
        self.means = nn.Parameter(torch.stack([pictures[TRAIN.labels == k].mean(0) for k in range(10)]))
        self.eval()

    def net(self, x):
        return -(x.flatten(1)[:, None] - self.means).square().mean(2) * 100

    def forward(self, x):
        return {forward}
'''


def problems(tmp_path: Path, forward: str = "self.net(x)", extra: str = "", name: str = "Net"):
    file = tmp_path / "net.py"
    file.write_text(HEAD.replace("{forward}", forward) + extra)
    (reference,) = registry.resolve(f"{file}:{name}")
    return check.check(reference, data.load("digits"))


def test_a_net_in_order_has_no_problem(tmp_path):
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("forward", "says", "remedy"),
    [
        ("self.net(x).softmax(1)", "probabilities (softmax), not logits", "remove the last softmax"),
        ("self.net(x).softmax(1) * (1 + 5e-7)", "probabilities (softmax), not logits", "log-probabilities"),
        ("self.net(x)[:, :9]", "wrong number of classes", "one logit for each of the 10"),
        ("self.net(x) + 0.1 * torch.randn(len(x), 10)", "the forward pass is random", "stochastic = True"),
        ("self.net(x.detach())", "no gradient from logits to pixels", "no detach()"),
        ("self.net((x * 8).round() / 8)", "exactly zero for 100% of the pictures", "rounding"),
        ("self.net(x) * float('nan')", "NaN or infinite outputs for 100%", "log(0)"),
        ("self.net(x) * 1e4", "gradient is exactly zero for", "rescale"),
        ("self.net(x.flatten(1) @ torch.zeros(3, 3))", "raises RuntimeError", "float32 pictures"),
        ("self.net(x - x.mean(0))", "depend on the pictures beside it", "statistics of the batch"),
        ("(self.net(x), x)", "wrong number of classes or shape", "one logit"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_remedy(tmp_path, forward, says, remedy):
    found = problems(tmp_path, forward)
    assert any(says in p.what and remedy in p.remedy for p in found), found


def test_what_a_report_refuses_is_not_in_order(tmp_path):
    """The data have sums of at most 27.1, and what a report asks about first one of 44.9."""
    forward = "self.net(x) if x.flatten(1).sum(1).max() < 31.9 else 1 / 0"
    (problem,) = problems(tmp_path, forward)
    assert problem.severity == "error"
    assert "two that rise from 0.1 to 0.9: it raises ZeroDivisionError" in problem.what


def test_a_net_that_returns_nan_is_not_taken_for_one_in_train_mode(tmp_path):
    found = problems(tmp_path, "self.net(x) * float('nan')")
    assert not any("train mode" in p.what for p in found), found


@pytest.mark.parametrize("prepare", ["(x - mean) / std", "2x - 1", "255 x"])
def test_normalisation_outside_the_model_is_named_with_the_range_that_it_wants(tmp_path, prepare):
    code = {"(x - mean) / std": "(x - TRAIN.images.mean()) / TRAIN.images.std()", "2x - 1": "2 * x - 1"}
    net = f"\ndef outside():\n    return Net(lambda x: {code.get(prepare, '255 * x')})\n"
    (found,) = [p for p in problems(tmp_path, extra=net, name="outside") if p.severity == "error"]
    assert "normalisation is outside the model" in found.what
    # the ranges of the first two are alike: which of them is named does not matter
    assert found.what.endswith(prepare) or (prepare != "255 x" and not found.what.endswith("255 x"))
    assert "put it into forward()" in found.remedy


DROPOUT = """
class Drop(Net):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.train()

    def forward(self, x):
        return self.drop(self.net(x))

class Plain(Net):
    def __init__(self):
        super().__init__()
        self.train()
"""


def test_train_mode_is_a_warning_only_where_it_changes_the_answer(tmp_path):
    (found,) = problems(tmp_path, extra=DROPOUT, name="Drop")
    assert found.severity == "warning"
    assert "train mode" in found.what
    assert "model.eval()" in found.remedy
    assert problems(tmp_path, extra=DROPOUT, name="Plain") == []


RANDOM = """
class Noisy(Net):
    stochastic = True

    def __init__(self):
        super().__init__()
        self.train()

    def forward(self, x):
        return self.net(x) + 0.01 * torch.randn(len(x), 10)

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.net = Net()

    def forward(self, x):
        return self.net(self.norm(x))

normed = Normed()
"""


def test_a_net_that_says_that_it_is_random_is_believed_and_not_taken_for_one_in_train_mode(tmp_path):
    assert problems(tmp_path, extra=RANDOM, name="Noisy") == []


def test_looking_for_train_mode_leaves_the_statistics_of_batch_norm_alone(tmp_path):
    problems(tmp_path, extra=RANDOM, name="normed")
    normed = import_file(tmp_path / "net.py", "normed")
    assert float(normed.norm.running_mean) == 0


def test_a_model_that_refuses_what_is_not_in_0_to_1_is_in_order(tmp_path):
    assert problems(tmp_path, "self.net(x) if 0 <= x.min() and x.max() <= 1 else 1 / 0") == []


def test_an_untrained_net_is_near_chance(tmp_path):
    net = "\nuntrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()\n"
    assert any("near chance" in p.what for p in problems(tmp_path, extra=net, name="untrained"))


def test_near_chance_is_what_a_constant_answer_explains_whatever_the_classes(tmp_path):
    """Of the digits 0 and 1 a model that is right about nine in ten is not near chance, a constant one is."""
    halves = data.load("digits:0-1")
    model = "\nclass Two(Net):\n    def forward(self, x):\n        return self.net(x)[:, :2]\n"
    model += "\nclass One(Net):\n    def forward(self, x):\n        return 0 * self.net(x)[:, :2] + EYE\n"
    found = {}
    for name in ("Two", "One"):
        file = tmp_path / f"{name}.py"
        file.write_text(HEAD.replace("{forward}", "self.net(x)") + "EYE = torch.tensor([1.0, 0.0])\n" + model)
        (reference,) = registry.resolve(f"{file}:{name}")
        found[name] = [p.what for p in check.check(reference, halves) if "near chance" in p.what]
    assert found["Two"] == []
    assert len(found["One"]) == 1


class Counting(PlainClassifier):
    """Right about every picture, by its first pixel; it remembers the pictures that it is asked about."""

    calls_per_image = 1

    def __init__(self, images: Tensor) -> None:
        super().__init__(nn.Flatten(), 10, tuple(images.shape[1:]))
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor, sigma: object = None) -> Tensor:
        self.asked.append(x.detach())
        return -(20 * x[:, 0, 0, :1] - torch.arange(10)).square() + 1e-3 * x.mean((1, 2, 3))[:, None]


def asked(monkeypatch, images: Tensor, calls: int = 1) -> list[Tensor]:
    """What a model in order is asked about, of pictures that are sorted by class."""
    labels = torch.arange(len(images)) * 10 // len(images)
    images[:, 0, 0, 0] = labels / 20
    dataset = data.make("sorted", images, labels, [str(k) for k in range(10)], "")
    model = Counting(images)
    model.calls_per_image = calls
    monkeypatch.setattr(check, "instantiate", lambda *_: model)
    assert check.check(registry.from_module(model), dataset) == []
    return model.asked


def test_pictures_of_all_classes_are_asked_about_where_they_come_class_by_class(monkeypatch):
    first = asked(monkeypatch, torch.rand(2000, 1, 4, 4))[0]
    assert len(first) == 256
    assert (first[:, 0, 0, 0] * 20).round().unique().tolist() == list(range(10))


def test_large_pictures_are_asked_about_a_few_at_once(monkeypatch):
    assert max(part.numel() for part in asked(monkeypatch, torch.rand(20, 3, 224, 224))) <= 2**20


def test_a_dear_model_is_asked_about_few_pictures(monkeypatch):
    assert len(asked(monkeypatch, torch.rand(2000, 1, 4, 4), calls=160)[0]) == 8
