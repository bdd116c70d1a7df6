"""What README and docs say can be typed: every block runs, every command and option in the text exists.

A document's blocks run in order, in an empty folder. A block whose first line is a comment with a file's
name is that file; ``python`` runs, ``sh`` runs line by line. What cannot run here says why, in the source
above it: ``<!-- not run: ... -->``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from robustgen.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|toml))\n")
COMMANDS: Any = typer.main.get_command(app)


class Block(NamedTuple):
    """A fenced block: why it is not run (empty: it is), its language, its text."""

    why_not: str
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    return [Block(*groups) for groups in BLOCK.findall(document.read_text(encoding="utf-8"))]


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


RUNNABLE = [d for d in DOCUMENTS if any(b.language in ("python", "sh") and not b.why_not for b in blocks(d))]
NOT_RUN = [(name(d), block) for d in DOCUMENTS for block in blocks(d) if block.why_not]


@pytest.mark.parametrize("document", RUNNABLE, ids=name)
def test_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    space: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document):
        if block.why_not:
            continue
        if file := FILE.match(block.text):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, name(document), "exec"), space)
        elif block.language == "sh":
            for line in shell_lines(block.text):
                run(line)


@pytest.mark.parametrize(("document", "block"), NOT_RUN, ids=[d for d, _ in NOT_RUN])
def test_blocks_that_cannot_run_say_why(document: str, block: Block) -> None:
    assert len(block.why_not.split()) > 3
    pytest.skip(f"{document}: {block.why_not}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_block_is_run_or_says_why_or_is_no_code(document: Path) -> None:
    known = ("python", "sh", "yaml", "toml", "text", "bibtex")
    for block in blocks(document):
        assert block.language in known, f"{block.language!r}: label it {', '.join(known)}"
        said = re.search(r"^(\$ |robustgen |import |make )", block.text, re.M)
        assert block.language != "text" or block.why_not or not said, block.text


def shell_lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def run(line: str) -> None:
    """A command: ours in this process, which has already imported what it needs."""
    first, *arguments = shlex.split(line, comments=True)
    if first != "robustgen":
        subprocess.run(line, shell=True, check=True, timeout=300)
        return
    try:
        code = app(arguments, prog_name="robustgen", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except typer.Exit as end:
        code = end.exit_code
    assert not code, f"{line}: exit code {code}"


# --- commands in the text ----------------------------------------------------------------------------

SPAN = re.compile(r"`((?:robustgen|make|python) [^`\n]+)`")


def spoken(document: Path) -> Iterator[str]:
    """Commands in the running text, and in blocks that are not run."""
    text = document.read_text(encoding="utf-8")
    for block in blocks(document):
        text = text.replace(block.text, "")
        if block.why_not or block.language == "text":
            found = re.findall(r"(?:^|   +)((?:robustgen|make) [a-z].*?)(?=    |$)", block.text, re.M)
            yield from (command.partition(" #")[0] for command in found)
    yield from SPAN.findall(text)


def test_commands_in_the_text_exist() -> None:
    commands = [(name(d), command) for d in DOCUMENTS for command in spoken(d)]
    assert len(commands) > 20
    wrong = [f"{where}: {command}" for where, command in commands if not exists(command)]
    assert not wrong


def exists(command: str) -> bool:
    program, first, *_ = command.split()
    if program == "make":
        targets = re.findall(r"^([a-z.]+|\.venv/\.ready):", (ROOT / "Makefile").read_text(), re.M)
        return first in targets or "=" in first
    if program == "python":
        return first.startswith("-") or (ROOT / first).is_file()
    if first.startswith("-"):
        return first in ("--help", "--version", "--install-completion")
    if first not in COMMANDS.commands:
        return False
    options = {o for p in COMMANDS.commands[first].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command)) <= options


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert exists("robustgen report --n 5")
    assert not exists("robustgen report --no-such-option")
    assert not exists("robustgen evaluate")
    assert not exists("make coffee")
    assert not exists("python benchmarks/no_such.py")


@pytest.mark.slow
def test_the_notebook_runs_and_holds_the_outputs_of_a_run(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient: the extra dev")
    nbformat = pytest.importorskip("nbformat")
    stored = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    again = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(again, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(cells(stored), cells(again), strict=True):
        assert [o["output_type"] for o in before["outputs"]] == [o["output_type"] for o in after["outputs"]]
    said = "".join(o.get("text", "") for cell in cells(stored) for o in cell["outputs"])
    assert "Clean: accuracy" in said
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < 100_000
    assert not re.search(r"/(home|root|work|tmp)/", "".join(cell["source"] for cell in cells(stored)) + said)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


# --- the site and the notebook -----------------------------------------------------------------------


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the site needs mkdocs-material: the extra dev")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for document in (ROOT / "docs").glob("*.md"):
        page = tmp_path / ("index.html" if document.stem == "index" else f"{document.stem}/index.html")
        assert page.is_file(), document
    reference = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "Run one or several models through a protocol" in reference
    outside = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\" >]+)", reference)
    assert not [address for address in outside if "canonical" not in address]
