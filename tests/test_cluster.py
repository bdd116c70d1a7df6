"""A real Ray cluster of two nodes on this machine: the rows of one process, and a node that is killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pyarrow.compute as pc
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from robustgen import data, engine, registry
from robustgen.cli import app
from robustgen.cluster import RayExecutor
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.store import RunStore

T = TypeVar("T")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
MODEL = """
import os, pathlib, time
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 10))
        with open(pathlib.Path(__file__).with_name("loaded"), "a") as file:
            file.write(f"{os.getpid()}\\n")

    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)

class Deadly(Net):
    def forward(self, x):
        if os.getpid() != DRIVER and bool((x[0] == FATAL).all()):
            os._exit(1)
        return super().forward(x)

class Hanging(Net):
    def forward(self, x):
        if bool((x[0] == FATAL).all()):
            time.sleep(3600)
        return super().forward(x)
"""
SMALL = Protocol.model_validate({
    "name": "small", "version": 1, "summary": "", "n": 96, "chunk": 16,
    "data": {"digits": {"eps": {"linf": 0.1}, "foreign": ["photos"], "sigmas": [0.25, 0.5],
                        "denoiser": "denoiser-digits"}},
    "evaluations": [
        {"kind": "clean"},
        {"kind": "attack", "attack": "autoattack", "norm": "linf",
         "options": {"n_iter": 2, "n_target_classes": 2, "n_queries": 5}},
        {"kind": "ood"},
        {"kind": "gradients", "pictures": 2},
    ],
})  # fmt: skip
CHUNKS = 5 * 6  # clean with its calibration, and three more


def _patiently(start: Callable[[], T]) -> T:
    """Ray gives a node 30 seconds to start, which a busy machine may miss; starting is not what is tested."""
    try:
        return start()
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        return start()


@pytest.fixture(scope="module")
def cluster(bucket: Path) -> Iterator[Cluster]:
    # after the bucket: workers know of its server what their cluster knows
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (15, its own, starves on a busy machine)
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=NODE))
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def second(cluster: Cluster) -> Iterator[object]:
    node = _patiently(lambda: cluster.add_node(**NODE))
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    return file


def everything(store: RunStore) -> list[object]:
    names = [e["name"] for e in store.spec["evaluations"]]
    return [(store.rows(n), store.adversarial(n), store.table(n, "guidance")) for n in names]


def files(out: Path) -> dict[Path, tuple[int, int]]:
    return {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in out.glob("runs/*/samples/*/*.parquet")}


def test_a_node_killed_midway_costs_its_unfinished_chunks_and_no_bit_differs(
    cluster, second, model, tmp_path
):
    refs = registry.resolve(f"{model}:Net")
    alone = engine.evaluate(refs, SMALL, "digits", tmp_path / "alone").runs[0]
    loaded = model.with_name("loaded")
    loaded.write_text("")
    finished: dict[Path, tuple[int, int]] = {}
    steps: list[engine.Step] = []

    def watch(step: engine.Step) -> None:
        steps.append(step)
        if step.done != 6:
            return
        # however slowly the second worker starts: no worker gets another chunk while the driver is here
        deadline = time.monotonic() + 600
        while len(set(loaded.read_text().split()) - {str(os.getpid())}) < 2:
            assert time.monotonic() < deadline, "the second worker did not load its model"
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)
        finished.update(files(tmp_path / "ray"))

    outcome = engine.evaluate(refs, SMALL, "digits", tmp_path / "ray", executor=RayExecutor(), progress=watch)
    assert outcome.failures == {}
    assert everything(outcome.runs[0]) == everything(alone)
    assert 6 <= len(finished) < CHUNKS  # it was killed midway
    assert finished.items() <= files(tmp_path / "ray").items()  # nothing finished was written again
    assert [step.done for step in steps] == list(range(CHUNKS + 1))
    assert steps[-1].total == CHUNKS
    pids = loaded.read_text().split()
    # loaded here, and once a worker; another may have been hired in the place of the dead one
    assert 3 <= len(pids) == len(set(pids)) <= 4


def make_fatal(model: Path) -> None:
    """Let the first picture of a chunk be the one that kills, or hangs."""
    torch.save(data.load("digits").images[32], model.with_name("fatal.pt"))
    text = model.read_text().replace("DRIVER", str(os.getpid()))
    load = "torch.load(pathlib.Path(__file__).with_name('fatal.pt'))"
    model.write_text(text.replace("FATAL", load))


def test_a_chunk_that_kills_its_workers_fails_alone(cluster, model, tmp_path, monkeypatch):
    monkeypatch.setattr("robustgen.cluster.MAX_DEATHS", 1)
    make_fatal(model)
    clean = SMALL.model_copy(update={"evaluations": SMALL.evaluations[:1]})
    refs = registry.resolve(f"{model}:Deadly")
    outcome = engine.evaluate(refs, clean, "digits", tmp_path / "out", executor=RayExecutor())
    assert "1 workers died of it" in outcome.failures["mine-deadly"]
    rows = outcome.runs[0].rows("clean")
    assert sorted({*range(96)} - {*rows["sample_id"].to_pylist()}) == list(range(32, 48))


def test_from_the_command_line_four_workers_give_the_rows_of_one_on_an_object_store_and_keep_to_a_limit(
    cluster, bucket, model, tmp_path
):
    make_fatal(model)
    node = _patiently(lambda: cluster.add_node(**NODE | {"num_cpus": 3}))
    cluster.wait_for_nodes()
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL.model_dump(mode="json", exclude_none=True)))
    command = ["report", f"{model}:Hanging", "--data", "digits", "--protocol", str(tmp_path / "small.yaml")]
    command += ["--time-limit", "20", "--out", str(bucket / "ray"), "--executor", "ray"]
    try:
        said = CliRunner().invoke(app, command)
    finally:
        cluster.remove_node(node)
    assert said.exit_code == 1, said.output
    assert "a chunk took too long" in said.output
    alone = engine.evaluate(registry.resolve(f"{model}:Net"), SMALL, "digits", tmp_path / "alone").runs[0]
    (store,) = (RunStore.read(path) for path in (bucket / "ray" / "runs").iterdir())
    rows, wanted = store.rows("clean"), alone.rows("clean")
    assert sorted({*range(96)} - {*rows["sample_id"].to_pylist()}) == list(range(32, 48))
    assert rows == wanted.filter(pc.is_in(wanted["sample_id"], rows["sample_id"]))


@pytest.mark.parametrize("death", [ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError])
def test_a_worker_that_dies_of_trying_the_model_is_an_error_and_no_answer(death):
    def get(answer):
        raise death("gone")

    executor = RayExecutor.__new__(RayExecutor)
    executor.ray = SimpleNamespace(
        exceptions=ray.exceptions, get=get, cluster_resources=lambda: {"GPU": 1},
        remote=lambda **needs: lambda function: SimpleNamespace(remote=lambda *given: None),
    )  # fmt: skip
    with pytest.raises(UserError, match="worker that was to try the model died"):
        executor.call(print)
