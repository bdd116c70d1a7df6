"""What the page says of gradients, from a small real run of two models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustgen.config import Protocol
from robustgen.engine import evaluate
from robustgen.errors import UserError
from robustgen.metrics.gradient_doubts import gradient_doubts
from robustgen.metrics.rows import Evaluation, Run, read_run
from robustgen.registry import ZooModel, model_folders
from robustgen.report import pictures
from robustgen.report.explained import explained_figures, explained_gallery, sentence
from robustgen.report.figures import gradient_charts
from robustgen.report.plots import BOTTOM, Chart
from robustgen.report.render import render
from robustgen.report.summary import summarise
from robustgen.store import RunStore

MODELS = ("cdn-digits", "softmax-digits")
SWEEP = np.geomspace(0.1, 0.9, 12).tolist()


def protocol(sweep: list[float] = SWEEP, denoiser: str | None = "denoiser-digits") -> Protocol:
    return Protocol.model_validate(
        {
            "name": "g", "version": 1, "summary": "", "chunk": 12,
            "data": {"any": {"sigmas": [0.8, 0.2, 0.4, 0.3], "sweep": sweep, "denoiser": denoiser}},
            "evaluations": [{"kind": "clean"}, {"kind": "efficiency"}, {"kind": "explained", "pictures": 3}],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[RunStore]]:
    out = tmp_path_factory.mktemp("explained")
    folders = model_folders()
    outcome = evaluate([ZooModel(m, folders[m]) for m in MODELS], protocol(), "digits", out, n=12)
    assert not outcome.failures
    return out, summarise(out, outcome.runs, 12, "robustgen report"), outcome.runs


def test_efficiency_is_recomputed_from_the_stored_table(written: Any) -> None:
    _, summary, runs = written
    for store in runs:
        table = store.table("efficiency", "sweep").to_pandas()
        sums = table.groupby("sigma").sum()
        gain = (sums["reference_error"] - sums["guided_error"]).to_numpy()
        gamma = sums.index.to_numpy() ** -2.0
        steps = -np.diff(np.log(gamma))
        half = (steps * ((gain * gamma)[1:] + (gain * gamma)[:-1]) / 2).sum() / 2
        drop = sums["cross_entropy"].iloc[-1] - sums["cross_entropy"].iloc[0]
        (found,) = [
            m["value"] for m in summary["metrics"]
            if (m["model"], m["metric"]) == (store.model, "gradient_efficiency")
        ]  # fmt: skip
        assert found == pytest.approx(half / drop)


def test_the_three_sigmas_are_the_lowest_the_middle_and_the_highest(written: Any) -> None:
    for store in written[2]:
        (detail,) = [d for d in store.spec["evaluations"] if d["name"] == "explained"]
        assert detail["sigmas"] == [0.2, 0.4, 0.8]


def test_the_sentence_says_every_models_figures(written: Any) -> None:
    _, summary, _ = written
    said = sentence(summary)
    values = {(m["model"], m["metric"]): m["value"] for m in summary["metrics"]}
    for model in MODELS:
        efficiency = 100 * values[model, "gradient_efficiency"]
        shown = f"{efficiency:.0f}" if abs(efficiency) >= 100 else f"{efficiency:.1f}"
        assert f"{model} {shown.replace('-', '−')} (" in said
        assert f"{model} {values[model, 'radius_correlation']:.2f} (" in said
    assert "random span" in said
    assert sentence({**summary, "metrics": []}) == ""


def test_one_panel_for_all_models_at_three_sigmas(written: Any) -> None:
    _, _, runs = written
    pairs = [(store, read_run(store)) for store in runs]
    clean = np.random.default_rng(0).random((12, 1, 8, 8))
    gallery = explained_gallery(pairs, clean)
    assert gallery is not None
    assert gallery.heads == ["σ 0.2", "σ 0.4", "σ 0.8"]
    assert [name for name, _ in gallery.rows] == ["all models", *MODELS]
    captions = {name: [p.caption.split(" ±")[0] for p in cells[0]] for name, cells in gallery.rows}
    assert captions["all models"] == ["clean", "noisy", "reference"]
    assert [len(cells) for _, cells in gallery.rows] == [3, 3, 3]
    assert captions["cdn-digits"][0] == captions["softmax-digits"][0] == "attack"
    assert captions["cdn-digits"][-2:] == ["difference", "own denoisers"]
    assert captions["softmax-digits"][-1] == "difference"


def test_the_scatter_has_a_point_a_sample(written: Any) -> None:
    _, summary, runs = written
    read = [read_run(store) for store in runs]
    (figure,) = explained_figures(summary, read)
    shown = 0
    for run in read:
        [(_, table)] = run.tables("explained")
        shown += ((table["sigma"] == 0.2) & (table["margin"] > 0)).sum()
    assert figure.svg.count("<circle") == shown
    assert [name for name, _ in figure.legend] == list(MODELS)


def test_the_page_has_them(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, summary, _ = written
    monkeypatch.setattr(pictures, "clean_pictures", lambda *_: np.zeros((12, 1, 8, 8)))
    page = render(out).read_text(encoding="utf-8")
    assert "Class gradients and adversarial gradients" in page
    assert "First-order radius and distance" in page
    assert json.loads((out / "summary.json").read_text())["metrics"] == summary["metrics"]


def test_an_efficiency_surely_above_one_is_flagged() -> None:
    sigmas = np.tile(SWEEP, 40)
    ids = np.repeat(np.arange(40), len(SWEEP))

    def flags(gain: float) -> list[str]:
        table = pd.DataFrame(
            {
                "sample_id": ids, "sigma": sigmas, "reference_error": 2 + 0.01 * ids,
                "guided_error": 2 + 0.01 * ids - gain * sigmas**2, "cross_entropy": np.log1p(sigmas),
            }
        )  # fmt: skip
        sweep = Evaluation({"name": "efficiency", "kind": "efficiency"}, None, 40, table=table)
        run = Run("m", {}, {"efficiency": sweep})
        return [f.flag for f in gradient_doubts(run)]

    fall = np.log1p(SWEEP[-1]) - np.log1p(SWEEP[0])
    whole = fall / np.log(SWEEP[-1] / SWEEP[0])  # 1/2 of its integral over d log gamma is the fall
    assert flags(1.1 * whole) == ["efficiency_above_one"]
    assert flags(0.9 * whole) == []


@pytest.mark.parametrize(
    ("norms", "flagged"), [([0.0, 0.0], True), ([0.0, 0.1], False), ([None, None], False)]
)
def test_a_class_gradient_that_is_0_everywhere_is_flagged(norms: list[float | None], flagged: bool) -> None:
    table = pd.DataFrame({"sample_id": [0, 1], "sigma": 0.4, "guidance_norm": norms})
    table = table.assign(reference_error=1.0, wiener_error=2.0)
    gradients = Evaluation({"name": "gradients", "kind": "gradients"}, None, 2, table=table)
    found = list(gradient_doubts(Run("m", {}, {"gradients": gradients})))
    assert [(f.flag, f.evaluation) for f in found] == ([("zero_gradients", "gradients")] if flagged else [])


def test_a_reference_that_is_no_better_than_the_wiener_filter_is_noted() -> None:
    wiener = np.random.default_rng(0).gamma(8, 1, 100)
    several = [
        pd.DataFrame(
            {"sample_id": range(100), "sigma": sigma, "guidance_norm": 0.1, "wiener_error": wiener,
             "reference_error": factor * wiener + np.random.default_rng(1).normal(0, 1, 100)}
        )
        for sigma, factor in ((0.4, 0.8), (0.8, 1.0))
    ]  # fmt: skip
    gradients = Evaluation({"name": "gradients", "kind": "gradients"}, None, 100, table=pd.concat(several))
    (flag,) = gradient_doubts(Run("m", {}, {"gradients": gradients}))
    assert (flag.flag, flag.evaluation, flag.severity) == ("weak_reference", "gradients", "info")
    assert "σ 0.8" in flag.message


def test_what_the_data_do_not_allow_is_said() -> None:
    from robustgen.data import load
    from robustgen.plan import plan

    found = plan(protocol(denoiser=None), load("digits"))
    assert {r["evaluation"] for r in found.refused} == {"efficiency", "explained"}
    with pytest.raises(UserError, match="needs more of them"):
        plan(protocol(SWEEP[:8]), load("digits"))


def test_the_line_of_no_gain_lies_within_the_chart_where_all_gain() -> None:
    gains = {"sigma-0.2": (0.03, 0.05, 0.06), "sigma-0.4": (0.09, 0.1, 0.15)}
    metrics = [
        {
            "model": "m", "evaluation": "gradients", "variant": variant, "metric": "guidance_gain",
            "ci_low": low, "value": value, "ci_high": high,
        }
        for variant, (low, value, high) in gains.items()
    ]  # fmt: skip
    readout = {"name": "gradients", "kind": "gradients", "sigmas": [0.2, 0.4]}
    content = {"models": [{"name": "m", "evaluations": [readout]}], "metrics": metrics}
    (figure,) = [f for f in gradient_charts(content) if f.title == "Guidance gain"]
    (line,) = re.findall(r'<polyline class="reference"[^>]*points="([^"]*)"', figure.svg)
    heights = {float(point.split(",")[1]) for point in line.split()}
    assert heights == {Chart("", "", "", "", []).height - BOTTOM}
