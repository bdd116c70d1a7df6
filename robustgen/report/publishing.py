"""Published reports: the rows of a model in one compressed file, from which the page is made again.

A run is hundreds of small files, whose headers weigh more than their rows; packed together they are a third.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

from robustgen.disk import atomic, write_json
from robustgen.errors import UserError
from robustgen.report.render import render
from robustgen.report.summary import gather, read_summary, summarise

LEFT_BEHIND = ("adversarial", "errors.jsonl")
"""Adversarial pictures, for their size (a stranger's machine computes them again), and what was mended."""


def publish(report: Path, target: Path) -> None:
    """Put the models of a finished report into ``target``, rows/<model>.tar.xz each; then ``rebuild`` it.

    A model that is published there already is replaced and the others stay, so that one trained anew takes
    its own measurement alone. UserError where those that stay were measured otherwise.
    """
    content = read_summary(report / "summary.json")
    measured = content["models"]
    if (target / "summary.json").is_file():
        content = _join(target, read_summary(target / "summary.json"), content)
    (target / "rows").mkdir(parents=True, exist_ok=True)
    for model in measured:
        _pack(report / model["path"], target / "rows" / f"{model['name']}.tar.xz")
    write_json(target / "summary.json", content)


def _join(target: Path, published: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What stands in ``target`` with the models of a new report among them, in its places or at the end."""
    models = {model["name"]: model for model in published["models"]}
    measured = {model["name"]: model for model in new["models"]}
    if models.keys() <= measured.keys():
        return new
    ours, theirs = _settings(published), _settings(new)
    if ours != theirs:
        raise UserError(
            f"these models cannot stand beside those of {target}, which were measured otherwise",
            where=", ".join(measured),
            expected=ours,
            got=theirs,
            remedy=f"measure them alike, or remove {target} and measure all of its models anew",
        )
    added = "".join(f" {name}" for name in measured if name not in models)
    command = published["command"].replace("robustgen report", "robustgen report" + added, 1)
    return published | {"command": command, "models": [*(models | measured).values()]}


def _settings(content: dict[str, Any]) -> str:
    """How a report's models were measured, in words."""
    protocol, data = content["protocol"], content["data"]
    return (
        f"{protocol['name']} {protocol['version']}, n = {content['n']}, {data['name']} {data['fingerprint']}"
    )


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
            for entry in packed:
                _lay_out(packed, entry, out, archive)
    return out


def _lay_out(packed: tarfile.TarFile, entry: tarfile.TarInfo, out: Path, archive: Path) -> None:
    """One file of an archive, within ``out``. The filters of tarfile came with Python 3.11.4 only."""
    target, content = out / entry.name, packed.extractfile(entry) if entry.isreg() else None
    if content is None or not target.resolve().is_relative_to(out.resolve()):
        raise UserError(
            "this archive holds more than the files of a run", where=archive,
            expected="plain files under runs/MODEL/", got=entry.name, remedy="fetch it again",
        )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def rebuild(published: Path, workplace: Path) -> int:
    """Summary and page of a published report from its rows; returns the report's size in bytes."""
    laid = unpack(published, workplace / published.name)
    runs, n, earlier = gather([laid], laid)
    summarise(laid, runs, n, str(earlier[0]["command"]), earlier=earlier)
    render(laid)
    for name in ("summary.csv", "summary.json", "index.html"):
        shutil.copyfile(laid / name, published / name)
    return sum(file.stat().st_size for file in published.rglob("*") if file.is_file())
