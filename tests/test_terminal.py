"""What the command line prints: a line a chunk, examples, completion, and nothing that breaks in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from test_cli import ROOT, robustgen
from test_documents import COMMANDS, exists

from robustgen.terminal import EXAMPLES


def test_every_chunk_is_told_where_that_is_asked_for(tmp_path: Path):
    result = robustgen(
        "report", "softmax-digits", "--protocol", "clean", "--n", 4, "--out", tmp_path, "--verbose"
    )
    assert result.returncode == 0, result
    assert "softmax-digits: 1 of 2: clean 4, 100.0 % right" in result.stderr


def test_every_help_ends_with_examples_whose_commands_and_options_exist():
    assert {"robustgen", *COMMANDS.commands} == EXAMPLES.keys()
    for command, lines in EXAMPLES.items():
        assert lines
        assert all(exists(f"robustgen {line}") for line in lines), command
    assert "robustgen compare out/monday out/tuesday --out out/both" in robustgen("compare", "--help").stdout


def test_a_reader_that_leaves_early_breaks_nothing():
    command = f"{sys.executable} -m robustgen.cli list attacks | head -n 1"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def test_a_terminal_without_the_signs_of_a_table_shows_the_rest(tmp_path: Path):
    command = [sys.executable, "-m", "robustgen.cli", "report", "softmax-digits", "--protocol", "clean"]
    command += ["--n", "4", "--out", str(tmp_path)]
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}  # it has no ↓
    result = subprocess.run(
        command, cwd=ROOT, env=latin, capture_output=True, text=True, encoding="latin-1", timeout=300
    )
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result
    assert "ECE ?" in result.stdout
    assert str(tmp_path / "index.html") in result.stderr


def test_the_shell_completes_models_and_protocols():
    asked = {
        "_ROBUSTGEN_COMPLETE": "complete_bash",
        "COMP_WORDS": "robustgen report softmax-n",
        "COMP_CWORD": "2",
    }
    program = (
        "import sys; from robustgen.cli import app; sys.argv = ['robustgen']; app(prog_name='robustgen')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert "softmax-noise-digits" in result.stdout.split()
    assert "pgd-at-digits" not in result.stdout
