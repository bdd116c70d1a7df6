"""Every model at every other's adversarial pictures, and what that says of a masked one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from robustgen import data, engine, load_model, registry
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.metrics.intervals import wilson
from robustgen.store import RunStore
from robustgen.transfer import Pair, Transfer, transfer

N = 32
PGD = {"kind": "attack", "attack": "pgd", "norm": "linf", "options": {"steps": 10, "restarts": 1}}
PROTOCOL = Protocol.model_validate(
    {
        "name": "small", "version": 1, "summary": "s", "n": N, "chunk": N,
        "data": {"digits": {"eps": {"linf": 0.15}}},
        "evaluations": [
            {"kind": "clean"}, PGD, {"kind": "attack", "attack": "noise", "norm": "linf"},
        ],
    }
)  # fmt: skip
NAME = "pgd-s10-r1-linf-0.15"
# softmax-digits with every gradient lost on the way back: its decisions are the same.
MASKED = """
import torch
from robustgen import load_model
from robustgen.classifiers.base import Classifier

class Lost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)

class Masked(Classifier):
    num_classes, input_shape = 10, (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.model = load_model("softmax-digits")

    def logits(self, x, sigma=None):
        return self.model.logits(Lost.apply(x))
"""
MODELS = ("softmax-digits", "softmax-noise-digits", "masked-masked")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("user") / "masked.py"
    file.write_text(MASKED)
    out = tmp_path_factory.mktemp("report")
    references = registry.resolve_all(["softmax-digits", "softmax-noise-digits", f"{file}:Masked"], "digits")
    assert engine.evaluate(references, PROTOCOL, "digits", out).failures == {}
    return out


@pytest.fixture(scope="module")
def crossed(report: Path) -> tuple[Transfer, str]:
    console = Console(file=io.StringIO(), width=100)
    file = RunStore.read(report / "runs" / "masked-masked").environment["reference"].rpartition(":")[0]
    found = transfer(report, console, code=[Path(file)])
    return found, console.file.getvalue()  # type: ignore[attr-defined]


def right_at(report: Path, source: str, target: str) -> np.ndarray:
    """Who of the target's right pictures is still right, asked without the package's own loop."""
    stored = RunStore.read(report / "runs" / source).adversarial(NAME)
    assert stored is not None
    images = torch.tensor(np.stack(stored["image"].to_numpy(zero_copy_only=False))).view(-1, 1, 8, 8)
    digits, model = data.load("digits").slice(0, N), load_model(target)
    clean, still = (model.logits(x).argmax(1) == digits.labels for x in (digits.images, images))
    return still[clean].numpy()


def pairs(found: Transfer) -> dict[tuple[str, str], Pair]:
    return {(pair.source, pair.target): pair for pair in found.pairs}


def test_each_model_is_asked_about_each_models_pictures(report: Path, crossed: tuple[Transfer, str]) -> None:
    found = pairs(crossed[0])
    assert set(found) == {(source, target) for source in MODELS for target in MODELS}
    assert {pair.evaluation for pair in crossed[0].pairs} == {NAME}, "noise is no attack on a model"
    for source in MODELS[:2]:
        for target in MODELS[:2]:
            pair, right = found[source, target], right_at(report, source, target)
            own = right_at(report, target, target)
            assert (pair.n, pair.right) == (len(right), right.sum())
            assert (pair.share, pair.ci_low, pair.ci_high) == (right.mean(), *wilson(right.sum(), len(right)))
            assert (pair.left, pair.beaten) == (own.sum(), (own & ~right).sum())


def test_a_model_without_gradients_is_beaten_by_the_pictures_of_its_twin(
    crossed: tuple[Transfer, str],
) -> None:
    found = pairs(crossed[0])
    twin, masked = found["softmax-digits", "softmax-digits"], found["softmax-digits", "masked-masked"]
    assert masked.right == twin.right, "the twin makes the same decisions"
    assert masked.beaten > 0.5 * masked.left
    flag = next(f for f in crossed[0].flags if f.model == "masked-masked" and "softmax-digits" in f.message)
    assert (flag.flag, flag.severity, flag.evaluation) == ("transfer_beats_white_box", "warning", NAME)
    assert f"Pictures made for softmax-digits break {masked.beaten} of {masked.left}" in flag.message
    assert {f.model for f in crossed[0].flags} == {"masked-masked"}, "honest models are not accused"


def test_the_file_and_the_terminal_have_every_pair(report: Path, crossed: tuple[Transfer, str]) -> None:
    found, printed = crossed
    with (report / "transfer.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["source"], line["target"], int(line["right"])) for line in lines] == [
        (pair.source, pair.target, pair.right) for pair in found.pairs
    ]
    for pair in found.pairs:
        assert f"{100 * pair.share:.1f}" in printed
    assert "transfer_beats_white_box" in printed


def test_an_own_attack_is_crossed_whatever_its_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "noise.py").write_text("def up(model, x, y, threat):\n    return threat.project(x, x + 1)\n")
    own = {"kind": "attack", "attack": f"{tmp_path}/noise.py:up", "norm": "linf"}
    content = PROTOCOL.model_dump() | {"n": 4, "evaluations": [{"kind": "clean"}, own]}
    references = registry.resolve_all(["softmax-digits", "softmax-noise-digits"], "digits")
    engine.evaluate(references, Protocol.model_validate(content), "digits", tmp_path / "out")
    found = transfer(tmp_path / "out", Console(file=io.StringIO()))
    assert {pair.evaluation for pair in found.pairs} == {"noise-up-linf-0.15"}


def test_what_cannot_be_crossed_is_refused(report: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs two models"):
        transfer(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(report / "runs" / "softmax-digits")
    with pytest.raises(UserError, match="needs two models"):
        transfer(tmp_path)
    other = RunStore.read(report / "runs" / "softmax-digits")
    spec = other.spec | {"data": other.spec["data"] | {"fingerprint": "beef"}}
    RunStore.open(tmp_path / "runs" / "two", spec, other.environment)
    with pytest.raises(UserError, match="on other data"):
        transfer(tmp_path)


def test_a_model_that_was_changed_since_is_refused(report: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(report / "runs" / "softmax-digits")
    other = RunStore.read(report / "runs" / "softmax-noise-digits")
    spec = other.spec | {"model": other.spec["model"] | {"fingerprint": "beef"}}
    store = RunStore.open(tmp_path / "runs" / "two", spec, other.environment)
    for folder in ("samples", "adversarial"):
        (store.path / folder).symlink_to(other.path / folder)
    with pytest.raises(UserError, match="not the one of the run"):
        transfer(tmp_path)
