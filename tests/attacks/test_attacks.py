from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from robustgen.attacks import ATTACKS, build, evaluation_name
from robustgen.classifiers.base import PlainClassifier
from robustgen.config import AttackSpec
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.perturb import Attack
from robustgen.threat import ThreatModel


def made(name: str, norm: str = "linf", eps: float = 0.15, **options: float | str) -> Attack:
    spec = AttackSpec(kind="attack", attack=name, norm=norm, options=options)  # type: ignore[arg-type]
    return build(spec, ThreatModel(norm, eps))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_of_the_table_builds(name: str) -> None:
    attack = made(name)
    assert attack.name == name
    assert attack.reference
    assert ATTACKS[name].summary
    assert evaluation_name(attack) == f"{name}-linf-0.15"


@pytest.mark.parametrize(
    ("name", "norm", "eps", "options", "expected"),
    [
        ("pgd", "linf", 8 / 255, {}, "pgd-linf-8-255"),
        ("pgd", "l2", 0.5, {"steps": 20, "restarts": 2}, "pgd-l2-0.5"),
        ("pgd", "l2", 0.5, {"steps": 40, "loss": "ce", "rel_stepsize": 0.05}, "pgd-s40-a0.05-ce-l2-0.5"),
        ("autoattack", "linf", 0.15, {"n_queries": 500}, "autoattack-q500-linf-0.15"),
        ("autoattack", "l1", 12.0, {"n_iter": 50, "n_target_classes": 3}, "autoattack-i50-t3-l1-12"),
        ("square", "linf", 0.15, {"n_queries": 1000000}, "square-q1000000-linf-0.15"),
    ],
)
def test_another_budget_shows_in_the_name(
    name: str, norm: str, eps: float, options: dict[str, float | str], expected: str
) -> None:
    found = evaluation_name(made(name, norm, eps, **options))
    assert found == expected
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", found)


SEARCHES = [*(set(ATTACKS) - {"noise"}), "pyautoattack:standard", "pyautoattack:apgd-ce"]


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_one_class_is_an_error_since_its_pictures_would_all_be_robust(name: str) -> None:
    model = PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), 1, (1, 8, 8))
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UnsupportedError, match="2 classes or more"):
        made(name)(model, x, y, Draws(0, "aa", torch.arange(2)))


def test_stages_are_those_of_a_cascade() -> None:
    assert made("autoattack").detail()["cascade"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert made("square").detail()["cascade"] == made("pgd").detail()["cascade"] == []
    assert made("noise").detail() == {"attack": "noise", "norm": "linf", "eps": 0.15, "cascade": []}


def test_unknown_names_and_options_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="no attack named 'autoatack'") as error:
        made("autoatack")
    assert "did you mean autoattack" in str(error.value)
    with pytest.raises(UserError) as error:
        made("square", n_iter=3)
    assert "n_queries" in str(error.value)
    assert "'square'" in str(error.value)
    with pytest.raises(UserError, match="n_queries"):
        made("square", n_queries=2.5)
    with pytest.raises(UserError, match="loss"):
        made("pgd", loss="dlr")


def test_the_table_costs_no_heavy_import() -> None:
    code = "import sys, robustgen.attacks; sys.exit('torch' in sys.modules or 'pyautoattack' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert torch.__version__
