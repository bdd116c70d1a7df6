"""What somebody else may send: a report, a model, a data set. Each try is refused, and none of it runs.

SECURITY.md says who is trusted with what; each of its promises has a test here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustgen import engine, registry
from robustgen.config import Protocol, fingerprint
from robustgen.errors import UserError
from robustgen.store import RunStore
from robustgen.transfer import transfer
from robustgen.verify import verify_report

PROTOCOL = Protocol.model_validate(
    {
        "name": "small", "version": 1, "summary": "s", "n": 8, "chunk": 8,
        "data": {"digits": {"eps": {"linf": 0.15}}},
        "evaluations": [
            {"kind": "clean"},
            {"kind": "attack", "attack": "pgd", "norm": "linf", "options": {"steps": 2, "restarts": 1}},
        ],
    }
)  # fmt: skip
EVIL = "from pathlib import Path\nPath({mark!r}).touch()\nraise SystemExit\n"


def report(out: Path) -> Path:
    assert engine.evaluate(registry.resolve("softmax-digits"), PROTOCOL, "digits", out).failures == {}
    return out


def points_to(out: Path, reference: str) -> None:
    """Make run.json say that the model is another one, as a stranger's report may."""
    file = out / "runs" / "softmax-digits" / "run.json"
    content = json.loads(file.read_text())
    content["environment"]["reference"] = reference
    content["fingerprint"] = fingerprint([content["spec"], content["environment"]])  # no secret is in it
    file.write_text(json.dumps(content))
    assert RunStore.read(file.parent).environment["reference"] == reference


def evil(folder: Path) -> tuple[Path, Path]:
    """A Python file that leaves a mark when it runs, and the mark."""
    folder.mkdir(parents=True, exist_ok=True)
    file, mark = folder / "model.py", folder / "it-ran"
    file.write_text(EVIL.format(mark=str(mark)))
    return file, mark


def test_a_report_that_names_a_python_file_does_not_run_it(tmp_path: Path):
    out = report(tmp_path / "out")
    file, mark = evil(tmp_path / "evil")
    points_to(out, f"{file}:net")
    for ask in (verify_report, lambda folder: transfer_two(folder)):
        with pytest.raises(UserError, match="no code runs on a report's word alone") as caught:
            ask(out)
        assert f"--code {file}" in str(caught.value)
    assert not mark.exists()
    with pytest.raises(SystemExit):  # named, it runs: so it is the name that decides
        verify_report(out, code=[file])
    assert mark.exists()


def transfer_two(out: Path) -> None:
    """A transfer of the report with a second run, since one model has nobody to exchange pictures with."""
    (out / "runs" / "again").symlink_to(out / "runs" / "softmax-digits")
    transfer(out)


def test_a_report_that_names_a_zoo_model_does_not_run_its_code(tmp_path: Path, monkeypatch):
    out = report(tmp_path / "out")
    _, mark = evil(tmp_path / "models" / "evil-digits")
    card = "name: evil-digits\nfamily: f\nsummary: s\ndata: digits\narch: model.py:net\n"
    (tmp_path / "models" / "evil-digits" / "card.yaml").write_text(card)
    monkeypatch.chdir(tmp_path)
    points_to(out, "evil-digits")
    with pytest.raises(UserError, match="no code runs on a report's word alone"):
        verify_report(out)
    points_to(out, "*-digits")
    with pytest.raises(UserError, match="run code of their own"):
        verify_report(out)
    assert not mark.exists()
