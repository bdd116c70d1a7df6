"""What a run is said to take: exact where every picture costs the same, and beside the truth afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import imagenet
from robustgen import cost
from robustgen.cli import app
from robustgen.cost import Cost, CostEstimate, duration

PROTOCOL = """\
name: small
version: 1
summary: For this test.
seed: 0
chunk: 16
data: {any: {eps: {linf: 0.1}}}
evaluations: [{kind: clean}]
"""


def run(tmp_path: Path, *options: str):
    (tmp_path / "small.yaml").write_text(PROTOCOL)
    command = ["report", "softmax-digits", "--protocol", str(tmp_path / "small.yaml"), "--n", "48"]
    return CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), *options])


def test_a_dry_run_foretells_the_calls_exactly_and_computes_no_rows(tmp_path: Path) -> None:
    foretold = run(tmp_path, "--dry-run")
    assert foretold.exit_code == 0, foretold.output
    assert "softmax-digits: " in foretold.output
    assert not (tmp_path / "out" / "runs").exists()
    guess = json.loads((tmp_path / "out" / cost.FILE).read_text())["models"]["softmax-digits"]
    made = run(tmp_path)
    assert made.exit_code == 0, made.output
    (model,) = json.loads((tmp_path / "out" / "summary.json").read_text())["models"]
    truth = sum(c["forwards"] * c["n"] for c in model["costs"])
    assert guess["forwards"] == pytest.approx(truth) == pytest.approx(48 + 48)  # test, and calibration
    assert guess["backwards"] == 0
    (line,) = cost.comparison_lines(json.loads((tmp_path / "out" / "summary.json").read_text()))
    assert model["estimate"] == guess
    assert "2 estimated" in (tmp_path / "out" / "index.html").read_text()  # of each kind, a picture
    assert "were estimated" in line
    assert "forwards 96 and 96" in line
    both = tmp_path / "both"
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "out"), "--out", str(both)])
    assert compared.exit_code == 0, compared.output
    assert json.loads((both / "summary.json").read_text())["models"][0]["estimate"] == guess


def test_errors_of_evaluations_add_up_to_the_interval() -> None:
    costs = [Cost("clean", 10, 10, 0, 5.0, 0.0), Cost("pgd", 10, 400, 400, 100.0, 0.1)]
    found = CostEstimate("m", costs, 2**30)
    assert found.total("forwards") == 410
    assert found.bounds() == pytest.approx((105 - 19.6, 105 + 19.6))
    assert "1.0 GB" in cost.estimate_lines([found])[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.0, "3.0 s"), (89.0, "89.0 s"), (90.0, "1.5 min"), (7200, "2.0 h"), (2e5, "2.3 days")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_operations_of_an_imagenet_denoiser_are_those_that_its_paper_states() -> None:
    assert imagenet.operations() / 2e9 == pytest.approx(118.64, rel=0.01)  # Gflops of DiT-XL/2, table 4


def test_a_model_that_fails_is_named_and_the_others_are_foretold(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import torch\nclass Bad(torch.nn.Flatten):\n    def forward(self, x): raise KeyError(7)\n"
    )
    found = run(tmp_path, f"{bad}:Bad", "--dry-run")
    assert found.exit_code == 1
    assert "softmax-digits: " in found.output
    assert "bad-bad was not finished" in found.output
    assert "Mend the model if that is why" in found.output
    assert [*json.loads((tmp_path / "out" / cost.FILE).read_text())["models"]] == ["softmax-digits"]
