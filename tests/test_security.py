"""What somebody else may send: a report, a model, a data set. Each try is refused, and none of it runs.

SECURITY.md says who is trusted with what; each of its promises has a test here.
"""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.malformed_files import model_folder
from benchmarks.malformed_tables import SPEC, rows_table
from robustgen import added, data, engine, registry
from robustgen.classifiers import external, load
from robustgen.config import Protocol
from robustgen.data import npz
from robustgen.errors import UserError
from robustgen.report import robustbench
from robustgen.report.summary import summarise
from robustgen.store import Chunk, RunStore
from robustgen.strict import fingerprint
from robustgen.training import checkpoint
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
        with pytest.raises(UserError, match="runs only if you name it") as caught:
            ask(out)
        assert f"--code {file}" in str(caught.value)
    assert not mark.exists()
    with pytest.raises(UserError, match="SystemExit"):  # named, it runs: so it is the name that decides
        verify_report(out, code=[file])
    assert mark.exists()


def transfer_two(out: Path) -> None:
    """A transfer of the report with a second run, since one model has nobody to exchange pictures with."""
    others = engine.evaluate(registry.resolve("softmax-noise-digits"), PROTOCOL, "digits", out).runs
    summarise(out, [RunStore.read(out / "runs" / "softmax-digits"), *others], None, "")
    transfer(out)


def test_a_report_that_names_a_zoo_model_does_not_run_its_code(tmp_path: Path, monkeypatch):
    out = report(tmp_path / "out")
    _, mark = evil(tmp_path / "models" / "evil-digits")
    card = "name: evil-digits\nfamily: f\nsummary: s\ndata: digits\narch: model.py:net\n"
    (tmp_path / "models" / "evil-digits" / "card.yaml").write_text(card)
    monkeypatch.chdir(tmp_path)
    points_to(out, "evil-digits")
    with pytest.raises(UserError, match="runs only if you name it"):
        verify_report(out)
    points_to(out, "*-digits")
    with pytest.raises(UserError, match="run code of their own"):
        verify_report(out)
    assert not mark.exists()


# --- a malicious pickle --------------------------------------------------------------------------------


class Mark:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_the_malicious_pickle_is_one(tmp_path: Path):
    pickle.loads(pickle.dumps(Mark(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


def _weights(folder: Path, content: bytes) -> None:
    place, card = model_folder(folder, content)
    (place / "card.yaml").write_text(yaml.safe_dump(card))
    load(place)


def _torchvision(folder: Path, content: bytes) -> None:
    from torchvision import models

    weights = models.SqueezeNet1_1_Weights.DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    external.load("torchvision", "squeezenet1_1")


def _timm(folder: Path, content: bytes) -> None:
    pytest.importorskip("timm")
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(content)
    external.load("timm", f"local-dir:{folder}")


def _robustbench(folder: Path, content: bytes) -> None:
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("robustbench is not installed")
    place = folder / "cifar10" / "Linf"
    place.mkdir(parents=True)
    (place / "Wong2020Fast.pt").write_bytes(content)
    external.load_robustbench("Wong2020Fast", folder)


def _file(name: str):
    def read(folder: Path, content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        if name == "x.npz":
            data.load(str(folder / name))
        elif name == "added.npz":
            added.read(folder / name, data.load("digits"))
        elif name == "checkpoint.pt":
            checkpoint.load(folder / name, torch.device("cpu"))
        elif name.startswith("MNIST"):
            (folder / name).with_name("test.pt").write_bytes(content)
            data.load("mnist", root=folder)
        else:
            data.load("cifar10", root=folder)

    return read


READERS = {
    "weights": _weights, "torchvision": _torchvision, "timm": _timm, "robustbench": _robustbench,
    "npz": _file("x.npz"), "added": _file("added.npz"), "checkpoint": _file("checkpoint.pt"),
    "mnist": _file("MNIST/processed/training.pt"),
    "cifar10": _file("cifar-10-batches-py/test_batch"), "parquet": _file("cifar10/test.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_a_pickle(tmp_path: Path, monkeypatch, reader: str, form: str):
    mark = tmp_path / "it-ran"
    content = pickle.dumps(Mark(mark))
    if form == "torch":
        buffer = io.BytesIO()
        torch.save({"state_dict": Mark(mark)}, buffer)
        content = buffer.getvalue()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    with pytest.raises(UserError) as caught:
        READERS[reader](tmp_path, content)
    assert not mark.exists()
    if reader in ("torchvision", "timm", "robustbench") and form == "torch":
        assert "runs no pickled code" in str(caught.value)


def _no_network(*args: object, **options: object) -> None:
    raise OSError("no network")


def test_no_array_of_objects_is_read(tmp_path: Path):
    mark = tmp_path / "it-ran"
    np.savez(tmp_path / "x.npz", images=np.array([Mark(mark)], dtype=object), labels=np.zeros(1, np.int64))
    for read in (lambda: data.load(str(tmp_path / "x.npz")), lambda: added.read(tmp_path / "x.npz", None)):
        with pytest.raises(UserError, match="allow_pickle=False"):
            read()
    assert not mark.exists()


# --- a malicious YAML, zip, name, Parquet ---------------------------------------------------------------


def test_a_malicious_yaml_is_refused_as_protocol_and_as_card(tmp_path: Path):
    text = f"name: !!python/object/apply:os.mkdir [{tmp_path}/it-ran]"
    yaml.unsafe_load(text)
    (tmp_path / "it-ran").rmdir()  # it is malicious indeed
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "card.yaml").write_text(text)
    for read in (lambda: registry.load_protocol(str(tmp_path / "p.yaml")), lambda: load(tmp_path)):
        with pytest.raises(UserError, match="tags such as"):
            read()
    assert not (tmp_path / "it-ran").exists()


def test_a_zip_that_unpacks_to_more_than_there_is_room_for(tmp_path: Path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((100, 1, 64, 64)), labels=np.zeros(100, np.int64))
    assert (tmp_path / "x.npz").stat().st_size < 20_000
    monkeypatch.setattr(npz, "memory_limit", lambda: 1_000_000)
    for read in (lambda: data.load(str(tmp_path / "x.npz")), lambda: added.read(tmp_path / "x.npz", None)):
        with pytest.raises(UserError, match="it unpacks to"):
            read()


def test_a_zip_with_names_that_lead_out_or_stand_twice(tmp_path: Path):
    sound = io.BytesIO()
    np.save(sound, np.zeros((2, 1, 4, 4), np.float32))
    for names, part in (
        (["../images.npy", "/labels.npy"], "images"),
        (["images.npy", "images.npy"], "one name"),
    ):
        with (
            zipfile.ZipFile(tmp_path / "x.npz", "w") as archive,
            pytest.warns() if "one" in part else _quiet(),
        ):
            for name in names:
                archive.writestr(name, sound.getvalue())
        with pytest.raises(UserError, match=part):
            data.load(str(tmp_path / "x.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]


class _quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("name", ["../softmax-digits", "models/softmax", "/etc/passwd", "..", "a\0b", ""])
def test_a_name_of_a_model_or_protocol_is_no_path(name: str):
    for find in (registry.resolve, registry.load_protocol):
        with pytest.raises(UserError, match="there is no"):
            find(name)


@pytest.mark.parametrize("part", ["model", "evaluations", "retired"])
def test_a_run_that_names_folders_outside_of_itself(tmp_path: Path, part: str):
    bad = "../../elsewhere"
    spec = SPEC | (
        {"model": {"name": bad}} if part == "model" else {part: [SPEC["evaluations"][0] | {"name": bad}]}
    )
    content = {"spec": spec, "environment": {}, "fingerprint": fingerprint([spec, {}])}
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no run of robustgen"):
        RunStore.read(tmp_path)


def test_a_summary_cannot_send_an_export_elsewhere(tmp_path: Path):
    out = report(tmp_path / "out")
    numbers = {"evaluation": "clean", "variant": "", "metric": "accuracy", "value": 1.0, "n": 8}
    attack = {"name": "a", "kind": "attack", "attack": "autoattack", "norm": "linf", "eps": 8 / 255}
    model = {
        "name": "../../../evil", "path": "runs/m", "family": "f", "parameters": 1, "calls": 1,
        "evaluations": [attack],
    }  # fmt: skip
    metrics = [numbers | {"model": model["name"]}]
    metrics.append(metrics[0] | {"evaluation": "a", "metric": "robust_accuracy"})
    content = {
        "models": [model], "metrics": metrics, "flags": [], "robustgen": "0", "n": 8,
        "data": {"name": "../..", "size": 8, "provenance": "p"}, "protocol": {"name": "p", "version": 1},
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(content))
    (path,) = robustbench.export(out)
    assert path.resolve().is_relative_to((out / "robustbench").resolve())


def test_a_malicious_parquet_of_rows_reads_nothing_outside_its_run(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    store = RunStore.open(tmp_path / "m", SPEC, {})
    store.write(Chunk("clean", 0, 6), rows_table())
    (file,) = (tmp_path / "m").glob("samples/clean/*.parquet")
    said = dict(pq.read_schema(file).metadata) | {b"sha256": json.dumps({f"../{secret.name}": "0"}).encode()}
    pq.write_table(rows_table().replace_schema_metadata(said), file)
    for ask in (lambda: store.rows("clean"), lambda: store.damaged_files(Chunk("clean", 0, 6))):
        with pytest.raises(UserError, match="a stored chunk is damaged"):
            ask()
    assert store.finished("clean").tolist() == []  # set aside


def test_a_malicious_parquet_of_pictures(tmp_path: Path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    table = pa.table({"img": [{"bytes": file.getvalue(), "path": "/etc/passwd"}] * 3, "label": [0, 1, 2]})
    pq.write_table(table, tmp_path / "cifar10" / "test.parquet")
    assert data.load("cifar10", root=tmp_path).images.abs().sum() == 0  # its paths are not followed
    monkeypatch.setattr(npz, "memory_limit", lambda: 10)
    with pytest.raises(UserError, match="it unpacks to"):
        data.load("cifar10", root=tmp_path)


# --- secrets, and the audit ------------------------------------------------------------------------------


def test_no_secret_is_stored(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-value")
    monkeypatch.setenv("INNOCENT", "inn0cent-value")
    (tmp_path / "net.py").write_text(
        "import os\nfrom torch import nn\nfrom robustgen import load_data\n"
        "bad = load_data('digits').images[100]\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        fine = not (x == bad).flatten(1).all(1).any()\n"
        "        assert fine, os.environ['SOME_API_KEY'] + ' https://me:pw@host'\n"
        "        return super().forward(x.flatten(1))\nnet = Net(64, 10)\n"
    )
    changed = {"evaluations": [{"kind": "clean"}], "n": 128, "chunk": 64}
    clean = Protocol.model_validate(PROTOCOL.model_dump() | changed)
    outcome = engine.evaluate(
        registry.resolve(f"{tmp_path / 'net.py'}:net"), clean, "digits", tmp_path / "out"
    )
    assert outcome.failures
    stored = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "errors.jsonl" and "[SOME_API_KEY]" in path.read_text() for path in stored)
    for path in stored:
        for secret in (b"s3cr3t-value", b"inn0cent-value", b"me:pw"):
            assert secret not in path.read_bytes(), path


def test_an_audit_that_nobody_answers_claims_nothing():
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parent.parent / ".ci" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    skipped = {"name": "a", "skip_reason": "not found"}
    sound = {"name": "b", "version": "1", "vulns": []}
    bad = {"name": "c", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    assert audit.summarise([], "no route") == (["not audited: no route"], 0)
    lines, code = audit.summarise([skipped], "")
    assert (lines[-1].startswith("not audited"), code) == (True, 0)
    assert audit.summarise([sound, skipped], "")[1] == 0
    lines, code = audit.summarise([sound, bad], "")
    assert (code, lines) == (1, ["c 1: CVE-1, fixed in 2", "2 packages audited, 1 known vulnerabilities"])
