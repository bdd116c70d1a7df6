"""The commands as a person types them: exit codes, messages without tracebacks, nothing heavy imported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def robustgen(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robustgen.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def refused(*arguments: object, says: list[str]) -> None:
    """The command must end with 2 and one message that says all of this, without a traceback."""
    result = robustgen(*arguments)
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    for text in says:
        assert text in result.stderr, result.stderr


def test_help_imports_nothing_heavy():
    heavy = ("torch", "numpy", "pandas", "matplotlib", "pyarrow")
    code = f"import sys, robustgen.cli; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
    assert "report" in robustgen("--help").stdout


@pytest.mark.parametrize("what", ["models", "protocols", "attacks", "corruptions", "data"])
def test_lists_are_complete_and_machine_readable(what: str):
    entries = json.loads(robustgen("list", what, "--json").stdout)
    assert len(entries) >= 2
    assert all(entry["name"] and entry["summary"] for entry in entries)
    text = robustgen("list", what).stdout
    assert all(entry["name"] in text for entry in entries)


def test_show_prints_the_file():
    assert "arch:" in robustgen("show", "softmax-digits").stdout
    assert "evaluations:" in robustgen("show", "quick").stdout


def test_show_prints_the_file_at_a_path(tmp_path: Path):
    assert robustgen("show", ROOT / "attacks" / "quick.yaml").stdout == robustgen("show", "quick").stdout
    card = robustgen("show", "softmax-digits").stdout
    assert robustgen("show", ROOT / "models" / "softmax-digits").stdout == card
    (tmp_path / "wrong.yaml").write_text("name: wrong\n")
    refused("show", tmp_path / "wrong.yaml", says=["the key 'version' is missing"])


def test_mistakes_in_names():
    refused("report", "softmax-digit", says=["no model named", "did you mean softmax-digits"])
    refused("report", "--protocol", "quik", says=["no protocol named 'quik'", "did you mean quick"])
    refused("report", "--data", "digit", says=["digit"])
    refused("report", "--executor", "cluster", says=["no executor named", "local"])
    refused("report", "--device", "tpu", says=["no such device", "cpu"])
    refused("list", "modles", says=["cannot list", "models"])
    refused("show", "nothing", says=["no model or protocol named"])
    refused("check", "nowhere.py:net", says=["no such file"])
    refused("verify", "tests", says=["there is no run here"])
    refused("train", "nowhere.yaml", says=["nowhere.yaml"])


def test_a_denoiser_is_no_classifier(tmp_path: Path):
    refused("report", "denoiser-digits", "--out", tmp_path, says=["is a denoiser, not a classifier"])


def test_a_broken_file_of_a_user_is_named_with_its_line(tmp_path: Path):
    file = tmp_path / "net.py"
    file.write_text("import torch\nnet = torch.nn.Linear(64\n")
    refused("report", f"{file}:net", "--out", tmp_path / "out", says=["line 2", "SyntaxError"])
    file.write_text("import torch\n\ndef net():\n    return 1 / 0\n")
    refused("report", f"{file}:net", "--out", tmp_path / "out", says=["line 4", "ZeroDivisionError"])
    file.write_text("net = 3\n")
    refused("report", f"{file}:net", "--out", tmp_path / "out", says=["this is not a model", "int"])


def test_a_protocol_with_a_wrong_key_names_it(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nversion: 1\nsummary: s\nsead: 3\ndata: {any: {}}\nevaluations: [{kind: clean}]\n"
    )
    refused("report", "--protocol", file, says=["'sead'", "did you mean seed", str(file)])


def test_mistakes_in_options():
    for arguments in (("--protocoll", "quick"), ("--n", "0"), ("--batch", "many")):
        result = robustgen("report", *arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_a_precision_that_does_not_exist_is_refused_where_nothing_is_attacked(tmp_path: Path):
    options = ("--protocol", "clean", "--n", "4", "--out", tmp_path)
    refused("report", "softmax-digits", *options, "--precision", "fp4", says=["unknown precision", "fp4"])


def test_a_summary_that_is_none_is_refused(tmp_path: Path):
    for content in ('{"x": 1}', "[1]", '{"models": [{"path": "runs/m"}], "n": null}'):
        (tmp_path / "summary.json").write_text(content)
        refused("export", tmp_path, says=["this is not the summary of a report", str(tmp_path)])


def test_a_dry_run_speaks_json_too(tmp_path: Path):
    options = ("--protocol", "clean", "--n", "16", "--out", tmp_path, "--dry-run", "--json")
    found = json.loads(robustgen("report", "softmax-digits", *options).stdout)
    assert found == json.loads((tmp_path / "estimate.json").read_text())["models"]
    assert found["softmax-digits"]["forwards"] >= 16


def test_fewer_samples_than_were_asked_for_are_a_line(tmp_path: Path):
    options = ("--protocol", "clean", "--out", tmp_path)
    assert "has 400 samples" in robustgen("report", "softmax-digits", *options, "--n", "500").stderr
    assert "has 400 samples" not in robustgen("report", "softmax-digits", *options, "--n", "400").stderr


def test_json_is_the_summary_alone_and_quiet_is_silent(tmp_path: Path):
    options = ("--protocol", "clean", "--n", "16", "--out", tmp_path)
    result = robustgen("report", "softmax-digits", *options, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "summary.json").read_text())
    result = robustgen("report", "softmax-digits", *options, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "index.html").is_file()
    missing = robustgen("report", "no-such-model", *options, "--quiet")
    assert missing.returncode == 2  # a mistake is never silent
    assert "no-such-model" in missing.stderr


def test_no_colour_and_no_bar_in_a_pipe(tmp_path: Path):
    result = robustgen("report", "softmax-digits", "--protocol", "clean", "--n", "16", "--out", tmp_path)
    assert "\x1b" not in result.stdout + result.stderr
    assert "\r" not in result.stderr
    assert "chunks computed" in result.stderr


def test_ctrl_c_says_that_nothing_is_lost(tmp_path: Path):
    command = [sys.executable, "-m", "robustgen.cli", "report", "pgd-at-digits", "--out", str(tmp_path)]
    command += ["--protocol", "linf-0.15"]  # long enough to be interrupted
    # Where the tests themselves run in the background, ctrl-c is ignored, and children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not list(tmp_path.glob("runs/*/samples/*/*.parquet")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is finished is kept, and the same command continues" in errors
    assert "Traceback" not in errors


CUSTOM = """import torch
from torch import nn
from robustgen import data

train = data.load("digits", "train")

class Nearest(nn.Module):
    def __init__(self):
        super().__init__()
        means = [train.images[train.labels == k].mean(0).flatten() for k in range(10)]
        self.means = nn.Parameter(torch.stack(means))

    def forward(self, x):
        return -(x.flatten(1)[:, None] - self.means).square().sum(2)
"""


def test_a_custom_model_of_a_few_lines_stands_in_the_same_table(tmp_path: Path):
    assert len(CUSTOM.splitlines()) <= 15
    (tmp_path / "mine.py").write_text(CUSTOM)
    out = tmp_path / "out"
    result = robustgen(
        "report",
        "softmax-digits",
        f"{tmp_path / 'mine.py'}:Nearest",
        "--protocol",
        "quick",
        "--n",
        16,
        "--out",
        out,
    )
    assert result.returncode == 0, result.stderr
    assert str(out / "index.html") in result.stderr.replace("\n", "")
    summary = json.loads((out / "summary.json").read_text())
    accuracy = {
        m["model"]: m for m in summary["metrics"] if (m["evaluation"], m["metric"]) == ("clean", "accuracy")
    }
    assert set(accuracy) == {"softmax-digits", "mine-nearest"}
    assert all(m["n"] == 16 and m["ci_low"] <= m["value"] <= m["ci_high"] for m in accuracy.values())
    page = (out / "index.html").read_text()
    assert 'data-model="mine-nearest"' in page
    assert 'data-model="softmax-digits"' in page

    unnamed = robustgen("verify", out)
    assert unnamed.returncode == 2, unnamed.stdout
    assert "Traceback" not in unnamed.stderr
    assert f"--code {tmp_path / 'mine.py'}" in unnamed.stderr
    verified = robustgen("verify", out, "--code", tmp_path / "mine.py")
    assert verified.returncode == 0, verified.stdout
    assert "every verdict confirmed" in verified.stdout


def test_one_model_that_fails_costs_exit_1_and_the_others_their_rows_stay(tmp_path: Path):
    (tmp_path / "bad.py").write_text(
        "from torch import nn\nfrom robustgen import load_data\nbad = load_data('digits').images[100]\n"
        "class Net(nn.Sequential):\n    def forward(self, x):\n"
        "        assert not (x == bad).flatten(1).all(1).any(), 'out of luck'\n"
        "        return super().forward(x)\n"
        "net = Net(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    out = tmp_path / "out"
    result = robustgen(
        "report",
        "softmax-digits",
        f"{tmp_path / 'bad.py'}:net",
        "--protocol",
        "clean",
        "--n",
        150,
        "--out",
        out,
    )
    assert result.returncode == 1, result.stderr
    assert "out of luck" in result.stderr
    assert "Traceback" not in result.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert any(f["model"] == "bad-net" and "of 150" in f["message"] for f in summary["flags"]), summary[
        "flags"
    ]


def test_a_damaged_chunk_is_computed_anew_and_costs_only_itself(tmp_path: Path):
    arguments = ("report", "softmax-digits", "--protocol", "clean", "--n", 128, "--out", tmp_path)
    assert robustgen(*arguments).returncode == 0
    first, second = sorted(tmp_path.glob("runs/softmax-digits/samples/clean/*.parquet"))
    kept, before = second.stat().st_mtime_ns, json.loads((tmp_path / "summary.json").read_text())
    first.write_bytes(first.read_bytes()[:100])
    assert robustgen(*arguments).returncode == 0
    assert second.stat().st_mtime_ns == kept
    after = json.loads((tmp_path / "summary.json").read_text())
    assert after["metrics"] == before["metrics"]
    (flag,) = (f for f in after["flags"] if f not in before["flags"])
    assert flag["flag"] == "set_aside"
    assert ".000000-000064.parquet.damaged" in flag["message"]


def test_compare_puts_several_reports_on_one_page(tmp_path: Path):
    for name in ("softmax-digits", "pgd-at-digits"):
        assert (
            robustgen("report", name, "--protocol", "clean", "--n", 64, "--out", tmp_path / name).returncode
            == 0
        )
    both = tmp_path / "both"
    result = robustgen("compare", tmp_path / "softmax-digits", tmp_path / "pgd-at-digits", "--out", both)
    assert result.returncode == 0, result.stderr
    summary = json.loads((both / "summary.json").read_text())
    assert {m["model"] for m in summary["metrics"]} == {"softmax-digits", "pgd-at-digits"}
    assert (both / "index.html").is_file()


def test_check_says_what_is_wrong_and_exits_accordingly(tmp_path: Path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()\n"
    )
    result = robustgen("check", f"{tmp_path / 'net.py'}:net")
    assert result.returncode == 2
    assert "softmax" in result.stdout
    assert "remedy:" in result.stdout
    good = robustgen("check", "softmax-digits")
    assert good.returncode == 0
    assert "is in order" in good.stdout
