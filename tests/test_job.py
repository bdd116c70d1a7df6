"""What is sent to a worker, what it checks there, and how a model is profiled."""

from __future__ import annotations

import pickle

import pytest
import torch

from robustgen import engine, registry
from robustgen.chunks import Shard
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.evaluation import load_data
from robustgen.job import ModelJob
from robustgen.pilot import Kernels
from robustgen.plan import plan


def job(name: str = "softmax-digits") -> ModelJob:
    (reference,) = registry.resolve(name)
    return ModelJob(reference, registry.load_protocol("clean"), "digits", None, torch.device("cpu"))


def test_work_travels_without_what_it_has_loaded():
    from robustgen.classifiers import load

    ours = job()
    dataset = load_data("digits", "test", None)
    loaded = ModelJob(
        ours.reference, ours.protocol, "digits", None, ours.device,
        loaded=(load(ours.reference.folder), plan(ours.protocol, dataset)),
    )  # fmt: skip
    sent = pickle.dumps(loaded)
    assert len(sent) < 5_000
    assert pickle.loads(sent) == ours


@pytest.mark.parametrize(("key", "what"), [("model", "model"), ("data", "data"), ("code", "robustgen")])
def test_a_worker_that_finds_another_model_or_other_data_than_the_run_has_says_so(tmp_path, key, what):
    ours = job()
    (store,) = engine.evaluate([ours.reference], ours.protocol, "digits", tmp_path, n=8).runs
    ours.start_worker(store)  # as on a machine with the same files
    store.spec["identity"][key] = "something else"
    with pytest.raises(UserError, match=f"another {what} than the run has"):
        ours.start_worker(store)


def test_a_shards_rows_join_those_of_the_others(tmp_path):
    ours = job()
    parts = [Shard(1, 2), Shard(2, 2), None]
    computed = []
    for part in parts:
        steps: list[engine.Step] = []
        engine.evaluate(
            [ours.reference], ours.protocol, "digits", tmp_path / "out", n=300, shard=part,
            progress=steps.append,
        )  # fmt: skip
        computed.append(steps[0].total)
    (store,) = engine.evaluate([ours.reference], ours.protocol, "digits", tmp_path / "whole", n=300).runs
    (joined,) = engine.evaluate([ours.reference], ours.protocol, "digits", tmp_path / "out", n=300).runs
    assert computed[2] == 0
    evaluations = [evaluation["name"] for evaluation in store.spec["evaluations"]]
    assert sum(computed) == sum(len(store.finished(name)) for name in evaluations)
    for name in evaluations:
        assert sorted(joined.finished(name).tolist()) == sorted(store.finished(name).tolist())
    assert joined.rows("clean") == store.rows("clean")


def test_a_model_is_tried_on_a_full_batch_though_the_data_be_fewer(monkeypatch: pytest.MonkeyPatch):
    """A run pads its calls to the batch, and rows depend on the size of a call."""
    (reference,) = registry.resolve("softmax-digits")
    tried = []

    def watch(model, pictures, precision):
        tried.append(pictures)
        return Kernels(500)

    monkeypatch.setattr("robustgen.job.choose_kernels", watch)
    ours = ModelJob(reference, registry.load_protocol("quick"), "digits", None, torch.device("cpu"))
    ours.profile(None, batch=500, threads=1, precision="auto")  # of 400 test pictures
    (pictures,) = tried
    assert len(pictures) == 500
    assert torch.equal(pictures[400:], pictures[:100])


def test_pictures_of_a_density_count_as_attacked(monkeypatch: pytest.MonkeyPatch):
    """A protocol whose only attack is on foreign pictures has its gradients tried too."""
    content = registry.load_protocol("quick").model_dump(exclude_defaults=True)
    kinds = [{"kind": "clean"}, {"kind": "ood"}, {"kind": "fixed", "objective": "energy", "norm": "linf"}]
    protocol = Protocol.model_validate(content | {"evaluations": kinds})
    monkeypatch.setattr("robustgen.job.choose_kernels", lambda *given: Kernels(64, precision="bf16"))
    (reference,) = registry.resolve("softmax-digits")
    ours = ModelJob(reference, protocol, "digits", None, torch.device("cpu"))
    assert ours.profile(None, batch=64, threads=1, precision="auto").kernels.precision == "bf16"
