"""Published reports: the rows of a model in one compressed file, from which the page is made again.

A run is hundreds of small files, whose headers weigh more than their rows; packed together they are a third.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from robustgen.disk import atomic, read_json
from robustgen.report.render import render
from robustgen.report.summary import gather, summarise

LEFT_BEHIND = ("adversarial", "errors.jsonl")
"""Adversarial pictures, for their size (a stranger's machine computes them again), and what was mended."""


def publish(report: Path, target: Path) -> None:
    """Write a finished report to ``target``: page, summary, and rows/<model>.tar.xz."""
    if target.exists():
        shutil.rmtree(target)
    (target / "rows").mkdir(parents=True)
    for name in ("summary.json", "summary.csv"):
        shutil.copyfile(report / name, target / name)
    for model in read_json(report / "summary.json")["models"]:
        _pack(report / model["path"], target / "rows" / f"{model['name']}.tar.xz")


def _pack(run: Path, archive: Path) -> None:
    """The files of a run under runs/<model>/, the same bytes from the same files."""
    files = [
        file
        for file in sorted(run.rglob("*"))
        if file.is_file() and not {*file.relative_to(run).parts} & {*LEFT_BEHIND} and file.suffix != ".tmp"
    ]
    with atomic(archive) as temporary, tarfile.open(temporary, "w:xz", preset=9) as packed:
        for file in files:
            entry = packed.gettarinfo(file, f"runs/{run.name}/{file.relative_to(run).as_posix()}")
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode = 0, 0, 0, "", "", 0o644
            with file.open("rb") as content:
                packed.addfile(entry, content)


def unpack(published: Path, out: Path) -> Path:
    """Lay a published report out in ``out`` as the command wrote it, rows and all; returns ``out``."""
    shutil.copytree(published, out, dirs_exist_ok=True)
    for archive in sorted((published / "rows").glob("*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(out, filter="data")
    return out


def rebuild(published: Path, workplace: Path) -> int:
    """Summary and page of a published report from its rows; returns the report's size in bytes."""
    laid = unpack(published, workplace / published.name)
    runs, n = gather([laid], laid)
    summarise(laid, runs, n, str(read_json(published / "summary.json")["command"]))
    render(laid)
    for name in ("summary.csv", "summary.json", "index.html"):
        shutil.copyfile(laid / name, published / name)
    return sum(file.stat().st_size for file in published.rglob("*") if file.is_file())
