"""Adversarial pictures from elsewhere: what they break is counted, with its source, and survives a rerun."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from robustgen import data, engine, registry
from robustgen.added import add, read
from robustgen.classifiers import load_model
from robustgen.cli import app
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.measure import measure
from robustgen.metrics.rows import read_run
from robustgen.report.summary import summarise
from robustgen.store import RunStore
from robustgen.verify import verify_report

N, EPS = 40, 0.15
PROTOCOL = Protocol.model_validate(
    {
        "name": "small", "version": 1, "summary": "s", "n": N, "chunk": 16,
        "data": {"digits": {"eps": {"linf": EPS, "l2": 0.6}}},
        "evaluations": [
            {"kind": "clean"},
            {"kind": "attack", "attack": "noise", "norm": "linf"},
            {"kind": "attack", "attack": "noise", "norm": "l2"},
        ],
    }
)  # fmt: skip


def evaluate(folder: Path) -> None:
    engine.evaluate(registry.resolve("softmax-digits"), PROTOCOL, "digits", folder)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    evaluate(tmp_path / "report")
    return tmp_path / "report"


@pytest.fixture(scope="module")
def one_step() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FGSM's pictures of the first 20 samples, by hand, and who is right there and on the clean ones."""
    test = data.load("digits")
    model = load_model("softmax-digits", class_names=test.class_names, input_shape=test.shape)
    x, y = test.images[:20].clone().requires_grad_(), test.labels[:20]
    loss = torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
    images = (x + EPS * torch.autograd.grad(loss, x)[0].sign()).clamp(0, 1).detach()
    clean = model(test.images[:N]).argmax(1) == test.labels[:N]
    return images, model(images).argmax(1) == y, clean


def save(path: Path, images: torch.Tensor, ids: object = None) -> Path:
    np.savez(path, images=images.numpy(), **({} if ids is None else {"sample_ids": ids}))
    return path


def values(folder: Path) -> dict[tuple[str, str], float]:
    """Robust accuracies of the one run, by evaluation and variant."""
    (path,) = folder.glob("runs/*")
    found = [e.metric for e in measure(read_run(RunStore.read(path), None))]
    return {(m.evaluation, m.variant): m.value for m in found if m.metric == "robust_accuracy"}


def test_later_chunks_are_asked_where_an_earlier_one_is_missing(report, tmp_path, one_step):
    (path,) = report.glob("runs/*")
    (path / "samples" / "clean" / "000000-000016.parquet").unlink()
    (name, _) = add(report, save(tmp_path / "late.npz", one_step[0][:4], np.arange(36, 40)))
    assert RunStore.read(path).chunks(name) == [(0, 16), (16, 32), (32, 40)]


def test_what_they_break_is_lowered_with_its_source(report, tmp_path, one_step):
    images, right, clean = one_step
    file = save(tmp_path / "fgsm.npz", images)
    before = values(report)
    names = add(report, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert names == [f"added-fgsm-{digest[:8]}-l2-0.6", f"added-fgsm-{digest[:8]}-linf-0.15"]
    after = values(report)
    expected = torch.cat([right, clean[20:]]).float().mean().item()  # the clean picture where it has none
    assert after[names[1], ""] == pytest.approx(expected)
    assert before["worst-linf-0.15", ""] > 0.9
    assert after["worst-linf-0.15", ""] <= after[names[1], ""] < 0.8
    (path,) = report.glob("runs/*")
    flags = {f.flag: f for f in find_doubts(read_run(RunStore.read(path), None)) if f.evaluation == names[1]}
    assert "fgsm.npz" in flags["broken_elsewhere"].message
    assert "outside_budget" not in flags


def test_the_report_written_anew_still_says_of_which_model_there_is_nothing(report, tmp_path, one_step):
    (path,) = report.glob("runs/*")
    summarise(report, [RunStore.read(path)], None, "", {"gone": "cannot be loaded"})
    file = save(tmp_path / "fgsm.npz", one_step[0])
    result = CliRunner().invoke(app, ["verify", str(report), "--add", str(file)])
    assert result.exit_code == 0, result.output
    flags = json.loads((report / "summary.json").read_text())["flags"]
    assert [flag["model"] for flag in flags if flag["flag"] == "not_evaluated"] == ["gone"]


def test_a_picture_outside_the_budget_is_brought_into_it(report, tmp_path, one_step):
    images, _, _ = one_step
    file = save(tmp_path / "far.npz", 1 - images)  # nothing of the clean picture is left
    for name in add(report, file):
        assert values(report)[name, ""] > 0.3  # it would be 0 or so if the budget did not hold
    for finding in verify_report(report):
        assert finding.breaches == []


def test_how_many_pictures_were_outside_the_budget_is_said_and_flagged(report, tmp_path, one_step):
    summarise(report, [RunStore.read(path) for path in report.glob("runs/*")], None, "")
    file = save(tmp_path / "far.npz", 1 - one_step[0])
    printed = CliRunner().invoke(app, ["verify", str(report), "--add", str(file)]).stderr
    assert "-linf-0.15 (20 pictures lay outside the budget and were projected onto it)" in printed
    flags = json.loads((report / "summary.json").read_text())["flags"]
    (message,) = (
        f["message"] for f in flags if f["flag"] == "outside_budget" and f["evaluation"].endswith("linf-0.15")
    )
    assert message.startswith("20 of 20 added pictures lay outside this budget")


def test_adding_again_changes_nothing_and_a_rerun_keeps_it(report, tmp_path, one_step):
    file = save(tmp_path / "fgsm.npz", one_step[0])
    add(report, file)
    files = {p: p.read_bytes() for p in report.rglob("*.parquet")}
    add(report, file)
    evaluate(report)
    assert {p: p.read_bytes() for p in report.rglob("*.parquet")} == files
    (path,) = report.glob("runs/*")
    kept = [e["name"] for e in RunStore.read(path).spec["evaluations"] if "added" in e]
    assert len(kept) == 2
    assert all((name, "") in values(report) for name in kept)


def test_the_worst_case_keeps_the_samples_of_a_run_that_grew(report, tmp_path, one_step):
    add(report, save(tmp_path / "fgsm.npz", one_step[0]))
    before = values(report)["worst-linf-0.15", ""]
    engine.evaluate(registry.resolve("softmax-digits"), PROTOCOL, "digits", report, n=2 * N)
    (path,) = report.glob("runs/*")
    run = read_run(RunStore.read(path), 2 * N)
    (worst,) = [e.metric for e in measure(run) if e.metric.evaluation == "worst-linf-0.15"]
    assert worst.n == 2 * N
    right = run.evaluations["noise-linf-0.15"].rows.correct.sum()
    assert worst.value * worst.n <= right - N * (1 - before) + 2  # what they broke stays broken
    (flag,) = [f for f in find_doubts(run) if f.flag == "incomplete" and "linf" in f.evaluation]
    assert "--add" in flag.message


def test_ids_say_which_samples(tmp_path, one_step):
    test = data.load("digits")
    found = read(save(tmp_path / "a.npz", one_step[0][:3], np.array([7, 5, 399])), test)
    assert found.ids.tolist() == [7, 5, 399]
    bytes_ = (one_step[0][:2] * 255).round().to(torch.uint8)
    assert torch.equal(read(save(tmp_path / "b.npz", bytes_), test).images, bytes_.float() / 255)
    np.savez(tmp_path / "c.npz", images=one_step[0][:2].numpy().astype(">f4"))  # of another byte order
    assert torch.equal(read(tmp_path / "c.npz", test).images, one_step[0][:2])


@pytest.mark.parametrize(
    ("images", "ids", "got"),
    [
        (torch.rand(3, 1, 28, 28), None, r"images \(3, 1, 28, 28\)"),
        (torch.rand(3, 1, 8, 8) + 1, None, "pixels outside"),
        (torch.full((3, 1, 8, 8), torch.nan), None, "NaN"),
        (torch.rand(3, 1, 8, 8), [0, 1, 400], "outside the split"),
        (torch.rand(3, 1, 8, 8), [0, 1, 1], "twice"),
        (torch.rand(3, 1, 8, 8), [0, 1], r"sample_ids \(2,\)"),
        (torch.rand(0, 1, 8, 8), None, r"images \(0"),
    ],
)
def test_files_that_do_not_fit(tmp_path, images, ids, got):
    with pytest.raises(UserError, match=got):
        read(save(tmp_path / "bad.npz", images, ids), data.load("digits"))


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.array(["a"])}, {"images": np.array(0.5)}, {"images": np.zeros((1, 1, 8, 8), complex)},
        {"images": np.zeros((1, 1, 8, 8)), "sample_ids": np.array(["a"])},
        {"images": np.zeros((1, 1, 8, 8)), "sample_ids": np.array([0.5])}, {"pictures": np.zeros(3)},
    ],
)  # fmt: skip
def test_arrays_of_other_kinds(tmp_path, arrays):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(UserError, match="do not fit the data of the run"):
        read(tmp_path / "odd.npz", data.load("digits"))


def test_nothing_in_a_file_is_run(tmp_path):
    test = data.load("digits")
    np.savez(tmp_path / "objects.npz", images=np.array([print], dtype=object))
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps(print))
    for name in ("objects.npz", "pickled.npz", "absent.npz"):
        with pytest.raises(UserError, match="cannot read this file of pictures"):
            read(tmp_path / name, test)


def test_a_report_of_several_models_needs_a_name(report, tmp_path, one_step):
    engine.evaluate(registry.resolve("softmax-noise-digits"), PROTOCOL, "digits", report)
    file = save(tmp_path / "fgsm.npz", one_step[0])
    with pytest.raises(UserError, match=r"one of: softmax-digits, softmax-noise-digits"):
        add(report, file)
    with pytest.raises(UserError, match=r"got: +nobody"):
        add(report, file, "nobody")
    assert len(add(report, file, "softmax-noise-digits")) == 2
