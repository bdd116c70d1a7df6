"""The page: self-contained, escaped, and whole for the odd cases too."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fakes as fakes

from robustgen.errors import UserError
from robustgen.report import costs, pictures, plots, sentences
from robustgen.report.corruptions import Heat
from robustgen.report.render import render
from robustgen.report.summary import gather, summarise


def page_of(out: Path, *runs: Any) -> str:
    summarise(out, list(runs), None, "robustgen report")
    return render(out).read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(written: tuple[Path, Any]) -> None:
    page, _, script = (written[0] / "index.html").read_text(encoding="utf-8").partition("<script>")
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|WebSocket|sendBeacon", script)
    links = re.findall(r"(?:src|href|url\()\s*=?\s*[\"'(]?([^\"')\s>]+)", page)
    # the reader may go elsewhere on the page, and to the rows beside it
    assert all(re.match(r"data:|#|(?:\.\./)*(?:runs|rows)/", link) for link in links)
    assert "@import" not in page


def test_what_users_write_is_escaped(written: tuple[Path, Any]) -> None:
    page = (written[0] / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "Made &lt;up&gt; &amp; fake." in page


def test_it_says_what_was_run_and_how_to_run_it_again(written: tuple[Path, Any]) -> None:
    page = (written[0] / "index.html").read_text(encoding="utf-8")
    for part in (
        "robustgen report --data digits --protocol quick --n 48",
        "torch 2.15.0",
        "f00d",
        "the first <b>48</b> of 60",
    ):
        assert part in page


def test_every_gallery_has_its_pictures(written: tuple[Path, Any]) -> None:
    page = (written[0] / "index.html").read_text(encoding="utf-8")
    for part in (
        "What the attack changed",
        "What the class gradient adds",
        "class gradient of cdn-digits",
        "adversarial picture",
    ):
        assert part in page
    assert page.count("data:image/png") >= 3 + 4 * 6 + 9 + 4 * 6


def test_the_best_is_marked_and_ties_are_shown(written: tuple[Path, Any]) -> None:
    page = (written[0] / "index.html").read_text(encoding="utf-8")
    cell = re.search(r'<td class="number best"[^>]*data-metric="accuracy"[^>]*>', page)
    accuracy = {m["model"]: m["value"] for m in written[1]["metrics"] if m["metric"] == "accuracy"}
    assert cell
    assert f'data-model="{max(accuracy, key=accuracy.__getitem__)}"' in cell.group()
    assert "tied with the best" in page


def test_one_model_alone_colour_pictures_three_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = np.random.default_rng(0).random((60, 3, 4, 4)).astype(np.float32)
    monkeypatch.setattr(pictures, "clean_pictures", lambda data, root=None: clean)
    page = page_of(tmp_path, fakes.write_run(tmp_path, "alone", classes=3, shape=(3, 4, 4)))
    assert "adversarial picture" in page
    assert 'class="number best"' not in page
    assert "Which differences are real" not in page


def test_missing_evaluations_and_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(data: Any, root: Any) -> Any:
        raise UserError("the data are gone")

    monkeypatch.setattr(pictures, "clean_pictures", gone)
    clean_only = fakes.evaluations()[:1]
    page = page_of(
        tmp_path,
        fakes.write_run(tmp_path, "whole"),
        fakes.write_run(tmp_path, "part", evaluations=clean_only),
    )
    assert "There are no example pictures: the data are gone." in page
    assert 'class="number none"' in page


def test_a_raw_foreign_set_is_marked_and_the_scalar_stands_beside_it(tmp_path: Path) -> None:
    raw = {"name": "ood-letters-raw", "kind": "ood", "data": "letters", "size": 50, "provenance": "Letters.",
           "confounded": "digits came through JPEG, and this set did not"}  # fmt: skip
    page = page_of(tmp_path, fakes.write_run(tmp_path, "m", evaluations=[*fakes.evaluations(), raw]))
    assert "digits against letters, raw (confounded)" in page
    assert "Confounded: digits came through JPEG, and this set did not. Fine chroma alone" in page
    assert len(re.findall(r"Fine chroma alone, without a model: AUROC \d", page)) == 2


def test_risk_against_coverage_ends_at_the_clean_error(written: tuple[Path, Any]) -> None:
    page = (written[0] / "index.html").read_text(encoding="utf-8")
    chart = re.search(
        r'<svg class="chart"[^>]*aria-label="(Risk against coverage[^"]*)".*?</figure>', page, re.S
    )
    assert chart
    areas = {m["model"]: m["value"] for m in written[1]["metrics"]
             if (m["metric"], m["evaluation"], m["variant"]) == ("aurc", "clean", "")}  # fmt: skip
    for model, area in areas.items():
        assert f"{model}: AURC {100 * area:.2f}" in chart.group(1)
    assert chart.group().count('<polyline class="series"') == len(areas)


def test_a_folder_whose_name_is_no_utf8_has_its_page(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"gr\xf6\xdfe")
    summarise(out, [fakes.write_run(out, "a")], None, f"robustgen report --out {out.name}")
    assert "robustgen report --out gr??e" in render(out).read_text(encoding="utf-8")
    runs, n, _ = gather([out], tmp_path / "both")
    summarise(tmp_path / "both", runs, n, "robustgen compare")
    assert 'href="../gr%F6%DFe/runs/a/samples/"' in render(tmp_path / "both").read_text(encoding="utf-8")


def test_pages_that_a_kill_left_half_written_are_removed_after_a_day(tmp_path: Path) -> None:
    old, new = (tmp_path / f".index.html.{pid}.1.tmp" for pid in (1, 2))
    for file in (old, new):
        file.write_text("half")
    os.utime(old, (0, 0))
    page_of(tmp_path, fakes.write_run(tmp_path, "m"))
    assert not old.exists()
    assert new.exists()  # another process may be writing it


def test_clean_alone_is_a_page_too(tmp_path: Path) -> None:
    page = page_of(tmp_path, fakes.write_run(tmp_path, "m", evaluations=fakes.evaluations()[:1]))
    assert "Accuracy under attack" not in page
    assert 'data-metric="accuracy"' in page


@pytest.mark.parametrize("kind", ["", "clean", "attack", "corruption", "ood", "gradients", "detected"])
def test_a_page_is_written_where_no_evaluation_of_a_kind_was_finished(tmp_path: Path, kind: str) -> None:
    run = fakes.write_run(tmp_path, "m", joint=True)
    for detail in fakes.evaluations():
        if kind in ("", detail["kind"]):
            shutil.rmtree(run.path / "samples" / detail["name"])
    page = page_of(tmp_path, run)
    assert ('data-metric="accuracy"' in page) == (kind not in ("", "clean"))
    assert ("Corrupted pictures" in page) == (kind not in ("", "corruption"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 0.4), (0, 400), (12.1, 12.2)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = plots.ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low - 1e-9 <= min(found) <= max(found) <= high + 1e-9


def test_a_chart_of_figures_that_are_all_0_has_a_range() -> None:
    flat = plots.Series("masked", 0, [0.1, 0.2], [0.0, 0.0])
    chart = plots.Chart("Gain", "", "sigma", "%", [flat], y_range=(0.0, 0.0), zero_line=True)
    assert "<polyline" in chart.svg()


def test_png_has_the_pixels() -> None:
    import base64
    import io

    from PIL import Image

    picture = np.array([[[0, 0.5], [1, 2]]])
    with Image.open(io.BytesIO(base64.b64decode(pictures.png(picture).split(",")[1]))) as image:
        assert np.asarray(image).tolist() == [[0, 128], [255, 255]]


def test_models_that_lose_as_much_are_called_alike() -> None:
    detail = {
        "name": "pgd",
        "kind": "attack",
        "norm": "linf",
        "eps": 0.1,
        "cascade": ["pgd"],
        "attack": "pgd",
    }
    values = (("clean", "accuracy", 0.9), ("worst-linf-0.1", "robust_accuracy", 0.1))
    metrics = [
        {"model": model, "evaluation": evaluation, "variant": "", "metric": metric, "value": value}
        for model in "ab"
        for evaluation, metric, value in values
    ]
    models = [{"name": name, "evaluations": [detail], "stochastic": False} for name in "ab"]
    content: dict[str, Any] = {
        "models": models, "metrics": metrics, "protocol": {}, "data": {"name": "digits"},
    }  # fmt: skip
    (said,) = sentences.attacks(content)
    assert said == "Within L∞ ≤ 0.1 accuracy falls alike for a (90.0 to 10.0 %), b (90.0 to 10.0 %)."
    metrics[1]["value"] = 0.2
    assert "least for a (90.0 to 20.0 %), most for b (" in sentences.attacks(content)[0]


@pytest.mark.parametrize(
    ("cells", "said"),
    [([0.5, 0.5], "All suffer equally from fog"), ([0.5, 0.6], "a suffers most from fog"),
     ([0.5, 0.5, 0.6], "a, b suffer equally from fog")],
)  # fmt: skip
def test_the_models_that_a_corruption_hits_most_are_all_named(cells: list[float], said: str) -> None:
    heat = Heat(list("abc"[: len(cells)]), [("fog", list(cells)), ("snow", [0.9] * len(cells))])
    assert f"{said}: 50.0 %." in sentences.corruptions(heat)[0]


def test_the_cheapest_and_the_dearest_are_named_and_neither_is_called_the_best() -> None:
    points = [
        costs.CostPoint(name, 0, cost, {"value": 1.0}) for name, cost in (("dear", 9.0), ("cheap", 3.0))
    ]
    (sentence,) = sentences.costs(points)
    assert "from 3.0 ms (cheap) to 9.0 ms (dear)" in sentence
    assert sentence.endswith(
        "Below 5 ms most is the overhead of a call, not the network's work: it ranks nobody."
    )
    assert "overhead" not in sentences.costs([point._replace(milliseconds=6.0) for point in points])[0]


def test_from_the_ninth_model_on_a_dot_has_another_shape() -> None:
    dots = [plots.marker(index, 0, 0, 1) for index in range(24)]
    assert len(set(dots)) == 24
    assert [dot.startswith("<circle") for dot in dots] == [True] * 8 + [False] * 16


def test_the_title_of_the_upward_axis_is_clear_of_its_ticks() -> None:
    svg = plots.Chart(
        "t", "w", "x", "wrong among them, %", [plots.Series("m", 0, [0, 1], [0, 1])], y_range=(0, 1.05)
    ).svg()
    ticks = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', svg)
    assert ("0.25" in [label for _, label in ticks]) or ("0.2" in [label for _, label in ticks])
    digit, title = 7.0, 12 + 4  # the width of a digit at 12px; where the title, turned, ends with its tails
    assert all(float(x) - digit * len(label) > title for x, label in ticks)
