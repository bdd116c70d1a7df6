"""Which cells of the main table are shown as told apart from the best, and which are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import report_fakes as fakes

from robustgen.report import figures, glance, tables
from robustgen.report.columns import columns, headline_eps
from robustgen.report.flags import doubts_of, flag_groups
from robustgen.report.render import render
from robustgen.report.summary import summarise
from robustgen.report.takeaways import takeaways


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Two models without a common clean sample: one has the first half, the other the second."""
    runs = [fakes.write_run(tmp_path, "a", skill=1), fakes.write_run(tmp_path, "b", skill=6, seed=1)]
    for run, chunk in zip(runs, ("000000-000030", "000030-000060"), strict=True):
        (run.path / "samples" / "clean" / f"{chunk}.parquet").unlink()
    return tmp_path, summarise(tmp_path, runs, None, "")


def marks(content: dict[str, Any], metric: str) -> dict[str, str]:
    table = tables.main_table(content)
    (place,) = (i for i, c in enumerate(table.columns) if c.key == ("clean", "", metric))
    return {model["name"]: cells[place].mark for model, cells in table.rows if cells[place]}  # type: ignore[union-attr]


@pytest.mark.parametrize("metric", ["accuracy", "ece"])
def test_a_pair_without_a_test_is_not_shown_as_told_apart(
    apart: tuple[Path, dict[str, Any]], metric: str
) -> None:
    assert set(marks(apart[1], metric).values()) == {"best", "untested"}


def test_the_page_says_that_a_pair_was_not_tested(apart: tuple[Path, dict[str, Any]]) -> None:
    page = render(apart[0]).read_text(encoding="utf-8")
    assert "(not tested against the best)" in page
    tests = len(apart[1]["comparisons"])
    assert page.count(f"over all {tests} tests of summary.json") == 2
    assert re.search(r'key untested">framed</span> could not be tested', page)
    sentences = {each.opening: each.sentence for each in takeaways(tables.main_table(apart[1]), {})}
    assert "Not tested against it, for too few common samples: a" in sentences["On clean pictures"]


def test_models_that_share_half_of_their_samples_are_tested(tmp_path: Path) -> None:
    runs = [fakes.write_run(tmp_path, "a", skill=1), fakes.write_run(tmp_path, "b", skill=6, seed=1)]
    (runs[0].path / "samples" / "clean" / "000000-000030.parquet").unlink()
    content = summarise(tmp_path, runs, None, "")
    assert {t["n"] for t in content["comparisons"] if t["metric"] == "ece"} == {30}
    assert "untested" not in marks(content, "ece").values()


def test_told_apart_needs_a_test_against_every_best(written: tuple[Path, dict[str, Any]]) -> None:
    content = {**written[1], "comparisons": []}
    found = marks(content, "accuracy")
    assert sorted(found.values())[0] == "best"
    assert set(found.values()) <= {"best", "untested"}
    assert "framed" not in (written[0] / "index.html").read_text(encoding="utf-8")


def test_foreign_pictures_have_a_column_a_score(written: tuple[Path, dict[str, Any]]) -> None:
    titles = [c.title for c in columns(written[1]) if c.group == "Foreign, AUROC"]
    assert titles == ["letters by energy", "letters by log p(x)"]
    table = tables.main_table(written[1])
    (place,) = (i for i, c in enumerate(table.columns) if c.key.variant == "log_prob")
    assert [model["name"] for model, cells in table.rows if cells[place]] == ["cdn-digits"]


def test_some_classes_of_a_set_are_shown_at_the_eps_of_the_whole(written: tuple[Path, Any]) -> None:
    content = written[1]
    protocol = content["protocol"] | {"data": {"digits": {"eps": {"linf": 0.1, "l2": 0.5}}}}
    for name in ("digits", "digits:0-7"):
        some = content | {"data": content["data"] | {"name": name}, "protocol": protocol}
        assert headline_eps(some) == [("linf", 0.1), ("linf", 0.15), ("l2", 0.5)]  # 0.15 is a cascade's


def test_one_eps_in_two_floats_is_one_size(tmp_path: Path) -> None:
    plain = {"name": "clean", "kind": "clean", "data": "digits", "size": 60}
    tripled = fakes.attack("noise", "linf", 0.1 * 3)
    details = [plain, tripled, fakes.attack("autoattack", "linf", 0.3, fakes.CASCADE)]
    runs = [fakes.write_run(tmp_path, name, evaluations=details) for name in "ab"]
    content = summarise(tmp_path, runs, None, "")
    groups = [column.group for column in columns(content)]
    assert groups == ["Clean", *["Attacked, L∞ ≤ 0.3"] * 3, "Calibrated"]
    assert {(test["model_a"], test["model_b"]) for test in content["comparisons"]} == {("a", "b")}
    (figure,) = figures.curves(content)
    assert figure.svg.count(" at 0.3") == 2  # models


def test_a_stochastic_model_shows_its_three_verdicts(tmp_path: Path) -> None:
    details = [*fakes.evaluations(), fakes.attack("noise", "linf", 0.15)]
    runs = [
        fakes.write_run(tmp_path, "plain", evaluations=details),
        fakes.write_run(tmp_path, "noisy", evaluations=details, stochastic=True),
    ]
    content = summarise(tmp_path, runs, None, "")
    titles = {c.group: [d.title for d in columns(content) if d.group == c.group] for c in columns(content)}
    by = ("", ", majority", ", worst of 10")
    assert titles["Clean"] == [f"accuracy{how}" for how in by]
    of_attacks = [f"{name}{how}" for name in ("autoattack", "noise") for how in by]
    attacked = titles["Attacked, L∞ ≤ 0.15"]
    assert attacked == [*of_attacks, "worst case", "worst case, majority", "with a detector by confidence"]
    table = tables.main_table(content)
    filled = {
        model["name"]: [c.title for c, cell in zip(table.columns, cells, strict=True) if cell]
        for model, cells in table.rows
    }
    assert [t for t in filled["plain"] if "majority" in t or "worst of" in t] == []
    assert "worst case" not in filled["noisy"]
    # means of draws and single verdicts are tested against each other, not called untested
    found = marks(content, "accuracy")
    assert set(found) == {"plain", "noisy"}
    assert "untested" not in found.values()
    openings = [each.opening for each in takeaways(table, {})]
    assert openings.count("On clean pictures") == 1
    assert "Under attack, L∞ ≤ 0.15, by majority" in openings


def test_a_page_without_a_stochastic_model_does_not_speak_of_draws(written: tuple[Path, Any]) -> None:
    assert not [c for c in columns(written[1]) if "draw" in c.meaning or "majority" in c.title]


@pytest.mark.parametrize(("name", "where"), [("probabilities", ""), ("zero_gradients", "gradients")])
def test_a_gain_without_a_gradient_is_doubted_and_never_the_best(
    written: tuple[Path, Any], name: str, where: str
) -> None:
    content = written[1]
    before = gain_marks(content)
    best = next(name for name, mark in before.items() if mark == "best")
    said = {"model": best, "evaluation": where, "flag": name, "severity": "warning"}
    doubted = content | {"flags": [said | {"message": "No gradient. Mend it."}]}
    after = gain_marks(doubted)
    assert after[best] == ""
    assert "best" in after.values()
    table, doubts = tables.main_table(doubted), doubts_of(doubted, flag_groups(doubted))
    sentences = {said.metric: said.sentence for said in takeaways(table, doubts)}
    assert f"{best} (doubted) at" in sentences["guidance_gain"]


def test_gradients_that_are_0_at_probes_alone_are_ranked_by_their_gain(written: tuple[Path, Any]) -> None:
    said = {"evaluation": "probes", "flag": "zero_gradients", "severity": "warning", "message": "Some."}
    flags = [said | {"model": model["name"]} for model in written[1]["models"]]
    assert gain_marks(written[1] | {"flags": flags}) == gain_marks(written[1])


def gain_marks(content: dict[str, Any]) -> dict[str, str]:
    """What marks the gains at the first noise level, by model."""
    table = tables.main_table(content)
    place = next(i for i, c in enumerate(table.columns) if c.key.metric == "guidance_gain")
    return {model["name"]: cells[place].mark for model, cells in table.rows if cells[place]}  # type: ignore[union-attr]


def test_what_is_said_of_gains_is_corrected_for_how_many_there_are(written: tuple[Path, Any]) -> None:
    gain = {"evaluation": "gradients", "metric": "guidance_gain", "unit": "", "n": 48}
    by = {"a": 0.05, "b": 0.02, "c": 0.0, "d": -0.05}  # with these intervals p is 6e-7, 0.046, 1, 6e-7
    metrics = [
        {**gain, "model": name, "variant": "sigma-0.4", "value": v, "ci_low": v - 0.0196,
         "ci_high": v + 0.0196}
        for name, v in by.items()
    ]  # fmt: skip
    models = [written[1]["models"][0] | {"name": name} for name in by]
    table = tables.main_table(written[1] | {"models": models, "metrics": metrics, "comparisons": []})
    (said,) = takeaways(table, {})
    assert said.sentence == (
        "Improve the reference denoiser: a at σ 0.4. Make it worse: d at σ 0.4. "
        "(Tests against 0, Holm-corrected over all 4, 5 %.)"
    )


def test_a_best_that_no_test_tells_apart_is_said_to_be_so(written: tuple[Path, Any]) -> None:
    same = [test | {"p_holm": 1.0} for test in written[1]["comparisons"]]
    said = takeaways(tables.main_table(written[1] | {"comparisons": same}), {})[0].sentence
    assert ", but no other model differs significantly from it; last " in said


def test_gains_beyond_the_edge_are_written_and_drawn_side_by_side(written: tuple[Path, Any]) -> None:
    by = {"far-off": -4.5, "off": -1.08, "near": 0.1}
    metrics = [
        {"model": name, "evaluation": "gradients", "variant": "sigma-0.4", "metric": "guidance_gain",
         "value": v, "ci_low": v - 0.01, "ci_high": v + 0.01}
        for name, v in by.items()
    ]  # fmt: skip
    models = [written[1]["models"][0] | {"name": name} for name in by]
    content = written[1] | {"models": models, "metrics": metrics, "comparisons": []}
    (strip,) = glance.strips(tables.main_table(content), {})
    assert ">◂ −450, −108</text>" in strip.svg
    far_off, off, near = (float(x) for x in re.findall(r'<circle [^>]*cx="([\d.]+)"', strip.svg))
    assert far_off + 10 <= off < near
    chart = figures.gradient_charts(content)[0]
    assert chart.note.endswith("% are cut off; wholly below: far-off (−450 to −450), off (−108 to −108).")
