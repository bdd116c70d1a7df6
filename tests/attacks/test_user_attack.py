"""Attacks of a user's file: they come in by a protocol's path, are judged as any other, and count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustgen import attacks, engine, load_model, load_protocol, registry
from robustgen.attacks.user_attack import UserAttack
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.config import AttackSpec
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.evaluation import Evaluation
from robustgen.pilot import Kernels
from robustgen.store import Chunk
from robustgen.threat import ThreatModel
from robustgen.worker import Worker

LINF = ThreatModel("linf", 0.15)
FILE = """
def corner(model, x, y, threat, share=1.0):
    return (x + share * threat.eps * (1 - 2 * y.view(-1, 1, 1, 1))).clamp(0, 1)


def far(model, x, y, threat, share=1.01):
    return corner(model, x, y, threat, share)


def fewer(model, x, y, threat):
    return x[:1]


def failing(model, x, y, threat):
    return 1 / 0


NUMBER = 3


def drawing(model, x, y, threat, seed=1):
    return x


def broken(model, x, y, threat):
    return x * float("nan")


def training(model, x, y, threat):
    model.train()
    return x
"""
PROTOCOL = """
name: mine
version: 1
summary: An attack of my own.
data:
  any: {eps: {linf: 0.15}}
evaluations:
  - {kind: clean}
  - {kind: attack, attack: "mine.py:corner", norm: linf, options: {share: 0.5}}
"""


class Bright(torch.nn.Module):
    """Says 1 of pictures that are brighter than 0.5 on average."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-light, light], 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "mine.yaml").write_text(PROTOCOL)
    return tmp_path / "mine.py"


class Flickering(Classifier):
    """The same in a light that changes with every draw: at 0.45 it says 1 of three draws in ten."""

    num_classes, input_shape, stochastic = 2, (1, 2, 2), True

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.generator = Bright(), torch.Generator().manual_seed(0)

    def logits(self, x: torch.Tensor, sigma: float | torch.Tensor | None = None) -> torch.Tensor:
        return self.bright(x + 0.1 * torch.randn(len(x), 1, 1, 1, generator=self.generator))


def attacked(
    file: Path, name: str, x: torch.Tensor, y: torch.Tensor, victim: Classifier | None = None, **options: Any
) -> torch.Tensor:
    model = FixedBatch(victim or PlainClassifier(Bright(), 2, (1, 2, 2)), 4)
    attack = attacks.build(
        AttackSpec(kind="attack", attack=f"{file}:{name}", norm="linf", options=options), LINF
    )
    model.begin(len(x))
    return attack(model, x, y, Draws(0, "test", torch.arange(len(x)))).images


X = torch.tensor([0.4, 0.6, 0.3, 0.6]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
Y = torch.tensor([0, 1, 0, 0])


def test_what_breaks_is_kept_and_what_does_not_stays_clean(file: Path) -> None:
    # 0.4 and 0.6 cross the middle; 0.3 does not get there; the last one was wrong from the start
    found = attacked(file, "corner", X, Y)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.55, 0.45, 0.3, 0.6])
    assert torch.equal(attacked(file, "corner", X, Y, share=0.1), X)


def test_images_of_nan_are_reported_for_their_samples(file: Path) -> None:
    attack = attacks.build(AttackSpec(kind="attack", attack=f"{file}:broken", norm="linf"), LINF)
    model = FixedBatch(PlainClassifier(Bright(), 2, (1, 2, 2)), 4)
    model.begin(4)
    found = attack(model, X, Y, Draws(0, "test", torch.arange(4)))
    assert torch.equal(found.images, X)
    assert found.out_of_budget is not None
    assert found.out_of_budget.tolist() == [True, True, True, False]  # the last was wrong from the start


def test_an_attack_leaves_the_model_in_eval_mode(file: Path) -> None:
    victim = PlainClassifier(torch.nn.Sequential(torch.nn.Dropout(0.9), Bright()), 2, (1, 2, 2)).eval()
    attacked(file, "training", X, Y, victim)
    assert not any(module.training for module in victim.modules())


def test_no_draw_of_a_stochastic_model_decides_who_is_attacked_and_what_is_kept(file: Path) -> None:
    x, y = torch.full((64, 1, 2, 2), 0.45), torch.zeros(64, dtype=torch.int64)
    found = attacked(file, "corner", x, y, Flickering())
    assert found == pytest.approx(torch.full_like(x, 0.6))
    # what the model is more often right about is not taken for the clean picture
    assert torch.equal(attacked(file, "corner", x, y, Flickering(), share=-1.0), x)


def test_what_lies_beyond_the_budget_is_no_success_and_said_of_its_row(file: Path) -> None:
    assert torch.equal(attacked(file, "far", X, Y), X)
    attack = attacks.build(AttackSpec(kind="attack", attack=f"{file}:far", norm="linf"), LINF)
    evaluation = Evaluation("it", "attack", "digits", "test", 300, {}, perturbation=attack)
    model = load_model("softmax-digits")
    worker = Worker(model, [evaluation], source="digits", seed=0, kernels=Kernels(64))
    rows = worker(Chunk("it", 0, 300)).rows
    right = [row["draws_correct"] == 1 for row in rows.to_pylist()]
    assert 270 < sum(right) < 300
    # the picture that is wrong from the start is not attacked
    assert [not within for within in rows["within_budget"].to_pylist()] == right
    assert set(rows["distance"].to_pylist()) == {0.0}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fewer", ["of the same shape", "(3, 1, 2, 2)", "(1, 1, 2, 2)"]),
        ("failing", ["this attack failed", "mine.py, line 15", "ZeroDivisionError"]),
        ("NUMBER", ["this is not an attack", "int", "a function of (model, x, y, threat, ...)"]),
        ("corners", ["no attack named 'corners'", "did you mean corner"]),
    ],
)
def test_mistakes_are_told_in_one_message(file: Path, name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        attacked(file, name, X, Y)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_options_are_checked_against_the_functions_arguments(file: Path) -> None:
    with pytest.raises(UserError, match="shares"):
        UserAttack(f"{file}:corner", LINF, {"shares": 1})


@pytest.mark.parametrize("seed", [0, -1])
def test_a_whole_number_may_be_no_count(file: Path, seed: int) -> None:
    assert UserAttack(f"{file}:drawing", LINF, {"seed": seed}).options == {"seed": seed}
    with pytest.raises(UserError, match="seed"):
        UserAttack(f"{file}:drawing", LINF, {"seed": 0.5})


def test_a_protocol_finds_it_beside_itself_and_rows_depend_on_its_content(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent.parent)
    protocol = load_protocol(f"{file.parent.name}/mine.yaml")

    def run() -> Any:
        return engine.evaluate(
            registry.resolve("softmax-digits"), protocol, "digits", file.parent / "out", n=4
        )

    (store,) = run().runs
    rows = store.rows("mine-corner-share0.5-linf-0.15")
    assert rows is not None
    assert rows.num_rows == 4
    detail = next(e for e in store.spec["evaluations"] if e["kind"] == "attack")
    assert len(detail["code"]) == 16
    assert str(file.parent) not in json.dumps(store.spec)
    file.write_text(FILE.replace("share=1.0", "share=2.0"))
    with pytest.raises(UserError, match="code"):
        run()


def test_only_a_protocol_that_is_named_by_its_path_runs_code(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "attacks").mkdir()
    (file.parent / "mine.yaml").rename(file.parent / "attacks" / "mine.yaml")
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match="named by its path"):
        load_protocol("mine")
