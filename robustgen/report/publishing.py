"""Published reports: the rows of each model in one archive, from which summary and page are rebuilt.

A run is hundreds of small files, whose headers are larger than their rows; an archive takes a third of that.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from robustgen.disk import atomic, write_json
from robustgen.errors import UserError
from robustgen.report.content import Summary
from robustgen.report.render import render
from robustgen.report.summary import gather, read_summary, summarise

LEFT_BEHIND = ("adversarial", "errors.jsonl")
"""What an archive leaves out: adversarial pictures (large, and can be recomputed) and past errors."""


def publish(report: Path, target: Path) -> None:
    """Publish the models of a finished report in ``target``, rows/<model>.tar.xz each; ``rebuild`` it next.

    Models of the same name are replaced and the others stay. UserError where those that stay were measured
    with other settings.
    """
    content = read_summary(report / "summary.json")
    measured = content["models"]
    if (target / "summary.json").is_file():
        content = _join(target, read_summary(target / "summary.json"), content)
    (target / "rows").mkdir(parents=True, exist_ok=True)
    for model in measured:
        _pack(report / model["path"], target / "rows" / f"{model['name']}.tar.xz")
    write_json(target / "summary.json", content)


def _join(target: Path, published: Summary, new: Summary) -> Summary:
    """The summary in ``target`` with the models of a new report in their places, or at the end."""
    models = {model["name"]: model for model in published["models"]}
    measured = {model["name"]: model for model in new["models"]}
    if models.keys() <= measured.keys():
        return new
    ours, theirs = _settings(published), _settings(new)
    if ours != theirs:
        raise UserError(
            f"these models cannot be added to {target}: its models were measured with other settings",
            where=", ".join(measured),
            expected=ours,
            got=theirs,
            remedy=f"measure them with these settings, or remove {target} and publish all its models again",
        )
    added = "".join(f" {name}" for name in measured if name not in models)
    command = published["command"].replace("robustgen report", "robustgen report" + added, 1)
    return {**published, "command": command, "models": [*(models | measured).values()]}


def _settings(content: Summary) -> str:
    """The settings that a report's models were measured with, as text."""
    protocol, data = content["protocol"], content["data"]
    return (
        f"{protocol['name']} {protocol['version']}, n = {content['n']}, {data['name']} {data['fingerprint']}"
    )


def _pack(run: Path, archive: Path) -> None:
    """Pack a run's files under runs/<model>/, reproducibly: the same files give the same bytes."""
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
    """Unpack a published report with its rows into ``out``, as the command wrote it; returns ``out``."""
    shutil.copytree(published, out, dirs_exist_ok=True)
    for archive in sorted((published / "rows").glob("*.tar.xz")):
        with tarfile.open(archive) as packed:
            for entry in packed:
                _extract(packed, entry, out, archive)
    return out


def _extract(packed: tarfile.TarFile, entry: tarfile.TarInfo, out: Path, archive: Path) -> None:
    """Extract one file of an archive, within ``out`` (tarfile's filters need Python 3.11.4)."""
    target, content = out / entry.name, packed.extractfile(entry) if entry.isreg() else None
    if content is None or not target.resolve().is_relative_to(out.resolve()):
        raise UserError(
            "this archive contains more than the files of a run", where=archive,
            expected="plain files under runs/MODEL/", got=entry.name, remedy="download it again",
        )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def rebuild(published: Path, workplace: Path) -> int:
    """Rebuild summary and page of a published report from its rows; returns the report's size in bytes."""
    unpacked = unpack(published, workplace / published.name)
    runs, n, earlier = gather([unpacked], unpacked)
    summarise(unpacked, runs, n, str(earlier[0]["command"]), earlier=earlier)
    render(unpacked)
    for name in ("summary.csv", "summary.json", "index.html"):
        shutil.copyfile(unpacked / name, published / name)
    return sum(file.stat().st_size for file in published.rglob("*") if file.is_file())
