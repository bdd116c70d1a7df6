"""Every model at every other's adversarial pictures, and what that says of a masked one."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from robustgen import data, engine, load_model, registry
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.metrics.intervals import wilson
from robustgen.report.summary import summarise
from robustgen.store import RunStore
from robustgen.transfer import Pair, TransferResult, transfer

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
# softmax-digits in strong noise of its own, and an attack that hardly moves a picture.
DRAWN = """
import torch
from torch import nn
from robustgen import load_model

class Drawn(nn.Module):
    stochastic = True

    def __init__(self):
        super().__init__()
        self.model = load_model("softmax-digits")

    def forward(self, x):
        return self.model.logits(x + 0.45 * torch.randn_like(x))

class Twin(Drawn):
    pass

def nothing(model, x, y, threat):
    return (x + 0.001).clamp(0, 1)
"""
MODELS = ("softmax-digits", "softmax-noise-digits", "masked-masked")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("user") / "masked.py"
    file.write_text(MASKED)
    out = tmp_path_factory.mktemp("report")
    references = registry.resolve_all(["softmax-digits", "softmax-noise-digits", f"{file}:Masked"], "digits")
    outcome = engine.evaluate(references, PROTOCOL, "digits", out)
    assert outcome.failures == {}
    summarise(out, outcome.runs, None, "")
    return out


@pytest.fixture(scope="module")
def crossed(report: Path) -> tuple[TransferResult, str]:
    console = Console(file=io.StringIO(), width=100)
    file = RunStore.read(report / "runs" / "masked-masked").environment["reference"].rpartition(":")[0]
    found = transfer(report, console, code=[Path(file)])
    return found, console.file.getvalue()  # type: ignore[attr-defined]


def right_at(report: Path, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Who of the target's right pictures is still right, asked without the package's own loop, and whose
    picture the source's attack moved."""
    stored = RunStore.read(report / "runs" / source).adversarial(NAME)
    assert stored is not None
    images = torch.tensor(np.stack(stored["image"].to_numpy(zero_copy_only=False))).view(-1, 1, 8, 8)
    digits, model = data.load("digits").slice(0, N), load_model(target)
    clean, still = (model.logits(x).argmax(1) == digits.labels for x in (digits.images, images))
    moved = (images - digits.images).abs().amax((1, 2, 3)) > 0
    return still[clean].numpy(), moved[clean].numpy()


def pairs(found: TransferResult) -> dict[tuple[str, str], Pair]:
    return {(pair.source, pair.target): pair for pair in found.pairs}


def test_each_model_is_asked_about_each_models_pictures(
    report: Path, crossed: tuple[TransferResult, str]
) -> None:
    found = pairs(crossed[0])
    # without a gradient nothing was moved, and there is nothing to show to the others
    everyone = {(source, target) for source in MODELS for target in MODELS}
    assert set(found) == everyone - {("masked-masked", target) for target in MODELS[:2]}
    assert {pair.evaluation for pair in crossed[0].pairs} == {NAME}, "noise is no attack on a model"
    for source in MODELS[:2]:
        for target in MODELS[:2]:
            pair, (right, moved) = found[source, target], right_at(report, source, target)
            own, _ = right_at(report, target, target)
            assert source == target or right[~moved].all()
            shown = right if source == target else right[moved]
            assert (pair.n, pair.right) == (len(shown), shown.sum())
            assert (pair.share, pair.ci_low, pair.ci_high) == (shown.mean(), *wilson(shown.sum(), len(shown)))
            assert (pair.left, pair.beaten) == (own.sum(), (own & ~right).sum())


def test_a_model_without_gradients_is_beaten_by_the_pictures_of_its_twin(
    crossed: tuple[TransferResult, str],
) -> None:
    found = pairs(crossed[0])
    twin, masked = found["softmax-digits", "softmax-digits"], found["softmax-digits", "masked-masked"]
    assert masked.right == twin.right, "the twin makes the same decisions"
    assert masked.beaten > 0.5 * masked.left
    flag = next(f for f in crossed[0].flags if f.model == "masked-masked" and "softmax-digits" in f.message)
    assert (flag.flag, flag.severity, flag.evaluation) == ("transfer_beats_white_box", "warning", NAME)
    assert f"Pictures made for softmax-digits break {masked.beaten} of {masked.left}" in flag.message
    assert {f.model for f in crossed[0].flags} == {"masked-masked"}, "honest models are not accused"


def test_the_file_and_the_terminal_have_every_pair(report: Path, crossed: tuple[TransferResult, str]) -> None:
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
    assert evaluations_crossed(tmp_path / "out", own) == {"noise-up-linf-0.15"}


def test_draws_that_differ_by_chance_beat_no_attack(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(DRAWN)
    own = {"kind": "attack", "attack": f"{file}:nothing", "norm": "linf"}
    content = PROTOCOL.model_dump() | {"n": 64, "evaluations": [{"kind": "clean"}, own]}
    models = registry.resolve_all([f"{file}:Drawn", f"{file}:Twin"], "digits")
    outcome = engine.evaluate(models, Protocol.model_validate(content), "digits", tmp_path / "out")
    assert outcome.failures == {}
    summarise(tmp_path / "out", outcome.runs, None, "")
    found = transfer(tmp_path / "out", Console(file=io.StringIO()), code=[file])
    (pair,) = (pair for pair in found.pairs if (pair.source, pair.target) == ("mine-twin", "mine-drawn"))
    assert pair.beaten == 0
    assert 0 < pair.right < pair.n, "the draws differ too little to show anything"
    assert found.flags == []


def test_pictures_made_for_others_are_not_crossed_as_own_attacks(tmp_path: Path) -> None:
    transferred = {"kind": "transfer", "norm": "linf", "steps": 2}
    assert evaluations_crossed(tmp_path, PGD, transferred) == {NAME}


def evaluations_crossed(out: Path, *evaluations: dict[str, Any]) -> set[str]:
    content = PROTOCOL.model_dump() | {"n": 4, "evaluations": [{"kind": "clean"}, *evaluations]}
    references = registry.resolve_all(["softmax-digits", "softmax-noise-digits"], "digits")
    outcome = engine.evaluate(references, Protocol.model_validate(content), "digits", out)
    assert outcome.failures == {}
    summarise(out, outcome.runs, None, "")
    return {pair.evaluation for pair in transfer(out, Console(file=io.StringIO())).pairs}


def test_models_that_left_the_report_are_not_crossed(report: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(report / "runs")
    summarise(tmp_path, [RunStore.read(report / "runs" / name) for name in MODELS[:2]], None, "")
    found = transfer(tmp_path, Console(file=io.StringIO()))
    assert {pair.target for pair in found.pairs} == {pair.source for pair in found.pairs} == {*MODELS[:2]}


def test_what_cannot_be_crossed_is_refused(report: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json"):
        transfer(tmp_path)
    one, two = (RunStore.read(report / "runs" / name) for name in MODELS[:2])
    summarise(tmp_path, [one], None, "")
    with pytest.raises(UserError, match="needs two models"):
        transfer(tmp_path)
    spec = two.spec | {"data": two.spec["data"] | {"fingerprint": "beef"}}
    summarise(tmp_path, [one, copied(two, spec, tmp_path / "two")], None, "")
    with pytest.raises(UserError, match="they differ in data"):
        transfer(tmp_path)


def copied(run: RunStore, spec: dict[str, Any], path: Path) -> RunStore:
    """A run's rows and pictures under another specification."""
    store = RunStore.open(path, spec, run.environment)
    for folder in ("samples", "adversarial"):
        (store.path / folder).symlink_to(run.path / folder)
    return store
