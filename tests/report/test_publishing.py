"""Published reports are their rows': packed, laid out again, and rebuilt to the same numbers."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import report_fakes as fakes

from robustgen.disk import read_json
from robustgen.errors import UserError
from robustgen.report.publishing import publish, rebuild, unpack
from robustgen.report.summary import summarise

REPORTS = Path(__file__).parents[2] / "reports"


def test_publishing_rows_make_the_same_summary_and_a_page_that_links_to_them(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "published"
    publish(written[0], target)
    names = {model["name"] for model in written[1]["models"]}
    assert {file.name for file in (target / "rows").iterdir()} == {f"{name}.tar.xz" for name in names}
    before = {file.name: file.read_bytes() for file in (target / "rows").iterdir()}
    assert rebuild(target, tmp_path / "work") > 0
    again = read_json(target / "summary.json")
    for part in ("metrics", "comparisons", "flags", "n", "command"):
        assert again[part] == written[1][part]
    page = (target / "index.html").read_text(encoding="utf-8")
    assert 'href="rows/cdn-digits.tar.xz"' in page
    publish(written[0], target)
    assert before == {file.name: file.read_bytes() for file in (target / "rows").iterdir()}


def measured_anew(out: Path, n: int) -> dict[str, Any]:
    """A report of a published model that is better now, and of a new one."""
    runs = [
        fakes.write_run(out, "cdn-digits", skill=9.0, seed=9, joint=True, density="lower_bound"),
        fakes.write_run(out, "new-model", skill=2.0, seed=5),
    ]
    return summarise(out, runs, n, f"robustgen report cdn-digits new-model --n {n}")


def test_a_model_measured_anew_takes_its_place_and_the_others_stay(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "published"
    publish(written[0], target)
    new = measured_anew(tmp_path / "part", 48)
    publish(tmp_path / "part", target)
    rebuild(target, tmp_path / "work")
    page = read_json(target / "summary.json")
    assert [model["name"] for model in page["models"]] == [m["name"] for m in written[1]["models"]] + [
        "new-model"
    ]
    assert page["command"] == written[1]["command"].replace("report", "report new-model", 1)
    expected = [m for m in written[1]["metrics"] if m["model"] != "cdn-digits"] + new["metrics"]
    assert told(page["metrics"]) == pytest.approx(told(expected))


def test_models_measured_otherwise_are_refused_before_anything_is_replaced(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "published"
    publish(written[0], target)
    before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    measured_anew(tmp_path / "part", 24)
    with pytest.raises(UserError, match="measured with other settings") as caught:
        publish(tmp_path / "part", target)
    assert "n = 48" in caught.value.details["expected"]
    assert "n = 24" in caught.value.details["got"]
    assert before == {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}


def told(metrics: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    return {(m["model"], m["evaluation"], m["variant"], m["metric"]): m["value"] for m in metrics}


def test_adversarial_pictures_stay_behind(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    publish(written[0], tmp_path / "published")
    laid = unpack(tmp_path / "published", tmp_path / "laid")
    kept = {path.relative_to(laid).parts[2] for path in laid.glob("runs/*/*")}
    assert "samples" in kept
    assert "run.json" in kept
    assert "adversarial" not in kept
    assert any(written[0].glob("runs/*/adversarial"))


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in REPORTS.glob("*/summary.json")), ids=lambda p: p.name
)
def test_what_is_published_is_packed_and_says_which_models(folder: Path) -> None:
    names = {model["name"] for model in read_json(folder / "summary.json")["models"]}
    assert {file.name for file in (folder / "rows").iterdir()} == {f"{name}.tar.xz" for name in names}
    assert not (folder / "runs").exists()
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert len(page) < 8e6
    assert all(f"rows/{name}.tar.xz" in page for name in names)


def test_all_published_reports_fit_into_30_mb() -> None:
    assert sum(file.stat().st_size for file in REPORTS.rglob("*") if file.is_file()) < 30e6


def test_a_published_report_is_rebuilt_from_its_rows(tmp_path: Path) -> None:
    shutil.copytree(REPORTS / "digits-clean", tmp_path / "digits-clean")
    rebuild(tmp_path / "digits-clean", tmp_path / "work")
    old, new = (read_json(root / "digits-clean" / "summary.json") for root in (REPORTS, tmp_path))
    assert new["metrics"]
    assert told(new["metrics"]) == pytest.approx(told(old["metrics"]), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"), [("runs/../../out.txt", tarfile.REGTYPE), ("runs/m/a", tarfile.SYMTYPE)]
)
def test_an_archive_lays_out_nothing_but_files_within_its_folder(
    tmp_path: Path, name: str, kind: bytes
) -> None:
    rows = tmp_path / "published" / "rows"
    rows.mkdir(parents=True)
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
    with tarfile.open(rows / "m.tar.xz", "w:xz") as packed:
        packed.addfile(entry)
    with pytest.raises(UserError, match="more than the files of a run"):
        unpack(tmp_path / "published", tmp_path / "work" / "published")
    assert not (tmp_path / "work" / "out.txt").exists()
