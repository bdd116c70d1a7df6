"""Stored adversarial pictures are confirmed, and any tampering is caught."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustgen import data, engine, registry
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.store import Chunk, RunStore
from robustgen.verify import verify_report

PROTOCOL = Protocol.model_validate(
    {
        "name": "small", "version": 1, "summary": "s", "n": 24, "chunk": 24,
        "data": {"digits": {"eps": {"linf": 0.15, "l2": 0.6}}},
        "evaluations": [
            {"kind": "clean"},
            {"kind": "attack", "attack": "pgd", "norm": "linf", "options": {"steps": 5, "restarts": 1}},
            {"kind": "attack", "attack": "pgd", "norm": "l2", "options": {"steps": 5, "restarts": 1}},
        ],
    }
)  # fmt: skip


@pytest.fixture
def report(tmp_path: Path) -> Path:
    engine.evaluate(registry.resolve("softmax-digits"), PROTOCOL, "digits", tmp_path)
    return tmp_path


def pictures(report: Path, norm: str) -> Path:
    (file,) = report.glob(f"runs/*/adversarial/*{norm}*/*.parquet")
    return file


def tamper(file: Path, change) -> None:
    """Change the stored pictures (n, 64) in place, as somebody would who wants other numbers."""
    table = pq.read_table(file)
    images = np.stack(table["image"].to_numpy()).astype(np.float32)
    change(images)
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), images.shape[1])
    pq.write_table(pa.table({"sample_id": table["sample_id"], "image": column}), file)


def test_every_stored_picture_is_confirmed(report: Path):
    linf, l2 = verify_report(report)
    assert (linf.checked, l2.checked) == (24, 24)
    assert linf.breaches == l2.breaches == []
    assert linf.broken > 0
    assert "every verdict confirmed" in linf.sentence


@pytest.mark.parametrize(
    ("norm", "change", "says"),
    [
        ("linf", lambda images: images.__setitem__((3, 5), images[3, 5] + 0.4), "sample 3 is outside"),
        ("l2", lambda images: images.__setitem__((7, 0), -0.01), "sample 7 is outside"),
        ("linf", lambda images: images.__setitem__((2, 0), np.nan), "sample 2 is outside"),
    ],
)
def test_a_picture_outside_box_or_budget_is_caught(report: Path, norm, change, says):
    tamper(pictures(report, norm), change)
    (finding,) = [f for f in verify_report(report) if f"-{norm}-" in f.evaluation]
    assert any("is not the file that was written" in b for b in finding.breaches)
    assert any(says in b for b in finding.breaches), finding


def test_a_picture_that_is_no_longer_misclassified_is_caught(report: Path):
    file = pictures(report, "linf")
    name = file.parent.name
    clean = data.load("digits").images.flatten(1).numpy()
    run = RunStore.read(next(report.glob("runs/*")))
    rows = run.rows(name)
    clean_right = np.asarray(run.rows("clean")["draws_correct"]) == 1
    broken = (np.asarray(rows["draws_correct"]) == 0) & clean_right
    index = int(np.flatnonzero(broken)[0])
    tamper(file, lambda images: images.__setitem__(index, clean[index]))
    (finding,) = [f for f in verify_report(report) if f.evaluation == name]
    assert f"sample {index} is stored as misclassified and is not" in finding.breaches


def rows_file(report: Path) -> Path:
    (file,) = report.glob("runs/*/samples/*linf*/*.parquet")
    return file


def linf(report: Path) -> list[str]:
    (finding,) = [f for f in verify_report(report) if "-linf-" in f.evaluation]
    return finding.breaches


def test_what_is_gone_is_not_confirmed(report: Path):
    pictures(report, "linf").unlink()
    assert any("nothing is stored" in breach for breach in linf(report))
    rows_file(report).unlink()
    assert any("nothing is stored" in breach for breach in linf(report))


def test_rows_that_were_falsified_are_caught(report: Path):
    file = rows_file(report)
    run = RunStore.read(next(report.glob("runs/*")))
    table, images = run.rows(file.parent.name), run.adversarial(file.parent.name)
    flattered = table["logits"].to_pylist()
    flattered[4] = [0.0] * 10
    column = pa.array(flattered, table.schema.field("logits").type)
    index = table.column_names.index("logits")
    false = table.set_column(index, table.schema.field("logits"), column)
    (chunk,) = (Chunk(file.parent.name, *bounds) for bounds in run.chunks(file.parent.name))
    run.write(chunk, false, adversarial=images)
    assert "sample 4 has other logits than are stored" in linf(report)
    # without the hash of them that stands beside the rows it is seen even without asking the model
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(file).metadata), file)
    assert any("damaged" in breach for breach in linf(report))


@pytest.mark.parametrize("damage", [b"", b"not parquet at all"])
def test_a_damaged_file_is_a_breach_and_not_the_end(report: Path, damage: bytes):
    pictures(report, "linf").write_bytes(damage)
    findings = verify_report(report)
    assert len(findings) == 2
    assert any("damaged" in breach for breach in linf(report))


def test_a_larger_eps_written_into_the_specification_is_refused(report: Path):
    (file,) = report.glob("runs/*/run.json")
    file.write_text(file.read_text().replace('"eps": 0.15', '"eps": 0.9'))
    with pytest.raises(UserError, match="not the one that was written"):
        verify_report(report)


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no run here"):
        verify_report(tmp_path)


def test_pictures_of_every_kind_of_attack_are_checked(tmp_path: Path):
    kinds = [
        {"kind": "clean"},
        {"kind": "ood"},
        {"kind": "detected", "score": "confidence", "norm": "linf", "n_iter": 3},
        {"kind": "fixed", "objective": "energy", "norm": "linf", "steps": 3},
    ]
    here = {"digits": {"eps": {"linf": 0.15}, "foreign": ["letters"]}}
    protocol = Protocol.model_validate(
        PROTOCOL.model_dump(exclude_defaults=True) | {"data": here, "evaluations": kinds}
    )
    engine.evaluate(registry.resolve("softmax-digits"), protocol, "digits", tmp_path)
    findings = {finding.evaluation: finding for finding in verify_report(tmp_path)}
    stored = {file.parent.name for file in tmp_path.glob("runs/*/adversarial/*/*.parquet")}
    assert findings.keys() == stored
    assert len(stored) == 3
    assert not any(finding.breaches for finding in findings.values())
    assert {name for name, finding in findings.items() if not finding.asked} == {
        "ood-letters-fixed-energy-s3-linf-0.15"
    }
    for name in stored:
        (file,) = tmp_path.glob(f"runs/*/adversarial/{name}/*.parquet")
        tamper(file, lambda images: images.__setitem__((3, 5), images[3, 5] + 0.4))
    assert all(finding.breaches for finding in verify_report(tmp_path))
    file.unlink()
    lost = next(f for f in verify_report(tmp_path) if f.evaluation == file.parent.name)
    assert any(file.name in breach for breach in lost.breaches)


def test_one_lost_file_of_foreign_pictures_is_a_breach(tmp_path: Path):
    here = {"digits": {"eps": {"linf": 0.15}, "foreign": ["letters"]}}
    fixed = {"kind": "fixed", "objective": "energy", "norm": "linf", "steps": 1}
    kinds = [{"kind": "clean"}, {"kind": "ood"}, fixed]
    content = PROTOCOL.model_dump(exclude_defaults=True) | {"data": here, "evaluations": kinds, "chunk": 8}
    engine.evaluate(registry.resolve("softmax-digits"), Protocol.model_validate(content), "digits", tmp_path)
    first, second, *_ = sorted(tmp_path.glob("runs/*/adversarial/ood-*/*.parquet"))
    second.unlink()
    (finding,) = [f for f in verify_report(tmp_path) if not f.asked]
    assert [second.name in breach for breach in finding.breaches] == [True]
    assert first.is_file()


def test_a_report_without_attacks_is_not_passed_in_silence(tmp_path: Path):
    clean = Protocol.model_validate(
        PROTOCOL.model_dump(exclude_defaults=True) | {"evaluations": [{"kind": "clean"}]}
    )
    engine.evaluate(registry.resolve("softmax-digits"), clean, "digits", tmp_path)
    with pytest.raises(UserError, match="nothing to verify"):
        verify_report(tmp_path)


OWN_GENERATOR = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(64, 10)
        self.own = torch.Generator().manual_seed(1)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x + 0.3 * torch.randn(x.shape, generator=self.own))
"""


def test_chance_that_cannot_be_repeated_is_no_breach(tmp_path: Path):
    code = tmp_path / "own.py"
    code.write_text(OWN_GENERATOR)
    engine.evaluate(registry.resolve(f"{code}:Net"), PROTOCOL, "digits", tmp_path)
    for finding in verify_report(tmp_path, code=[code]):
        assert finding.breaches == []
        assert "cannot be repeated" in finding.sentence
    # what no chance explains is still one
    (run,) = map(RunStore.read, tmp_path.glob("runs/*"))
    (attacked,) = (e["name"] for e in run.spec["evaluations"] if "-linf-" in e["name"])
    (chunk,) = (Chunk(attacked, *bounds) for bounds in run.chunks(attacked))
    table, images = run.rows(chunk.evaluation), run.adversarial(chunk.evaluation)
    right = table["draws_correct"].to_pylist()
    sure = right.index(0)
    right[sure] = 32
    field = table.schema.field("draws_correct")
    false = table.set_column(table.column_names.index(field.name), field, pa.array(right, field.type))
    run.write(chunk, false, adversarial=images)
    (finding,) = [f for f in verify_report(tmp_path, code=[code]) if "-linf-" in f.evaluation]
    assert finding.breaches == [f"sample {sure} is stored as right and is misclassified"]


def test_chunks_that_overlap_are_asked_about_once(tmp_path: Path):
    """Two commands at once, one of them of fewer samples, leave rows of some samples twice."""
    file = tmp_path / "noisy.py"
    file.write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        torch.manual_seed(0)\n        self.layer = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n        return self.layer(x.flatten(1)) + 0.1 * torch.randn(len(x), 10)\n"
    )
    for n in (8, 16):
        few = PROTOCOL.model_copy(update={"chunk": 16})
        engine.evaluate(registry.resolve(f"{file}:Net"), few, "digits", tmp_path / str(n), n=n)
    for stored in (tmp_path / "8").glob("runs/*/[sa]*/*/*.parquet"):
        target = tmp_path / "16" / stored.relative_to(tmp_path / "8")
        assert not target.exists()
        target.write_bytes(stored.read_bytes())
    for finding in verify_report(tmp_path / "16", code=[file]):
        assert finding.checked == 16
