"""The four decisions: samples seed, chunks resume, one path for every evaluation, numbers from rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from robustgen import attacks, data, engine, registry
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.evaluation import load_data
from robustgen.executors import LocalExecutor
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.measure import measure
from robustgen.metrics.rows import read_run
from robustgen.store import RunStore
from robustgen.types import Metric

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 10))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[registry.ModelRef]:
    """An untrained net of a user: what is tested here does not depend on what it has learned."""
    file = tmp_path_factory.mktemp("user") / "mine.py"
    file.write_text(MODEL)
    return registry.resolve(f"{file}:net")


# Enough of a cascade to break some samples at each stage; seeded by chunk.
CASCADE = {"n_iter": 2, "n_target_classes": 2, "n_queries": 5}
CASCADE_NAME = "autoattack-i2-t2-q5-linf-0.1"


def protocol(**changes: object) -> Protocol:
    content = {
        "name": "small",
        "version": 1,
        "summary": "a bit of everything",
        "n": 32,
        "chunk": 16,
        "data": {"digits": {"eps": {"linf": 0.1}, "foreign": ["photos"], "sigmas": [0.25, 0.5],
                            "denoiser": "denoiser-digits"}},
        "evaluations": [
            {"kind": "clean"},
            {"kind": "attack", "attack": "pgd", "norm": "linf", "options": {"steps": 3, "restarts": 2}},
            {"kind": "attack", "attack": "autoattack", "norm": "linf", "options": CASCADE},
            {"kind": "corruptions", "types": ["gaussian_noise", "shot_noise"], "severities": [3]},
            {"kind": "ood"},
            {"kind": "gradients", "pictures": 2},
        ],
    }  # fmt: skip
    return Protocol.model_validate(content | changes)


def run(models, out: Path, chosen: Protocol, **options) -> RunStore:
    outcome = engine.evaluate(models, chosen, "digits", out, **options)
    assert outcome.failures == {}
    (store,) = outcome.runs
    return store


def everything(store: RunStore, n: int | None = None) -> dict[str, pa.Table | None]:
    """All that a run has stored, but for its cost."""
    found: dict[str, pa.Table | None] = {}
    for evaluation in (e["name"] for e in store.spec["evaluations"]):
        found[evaluation] = store.rows(evaluation, n)
        found[f"{evaluation}/adversarial"] = store.adversarial(evaluation, n)
        found[f"{evaluation}/guidance"] = store.table(evaluation, "guidance", n)
    assert sum(table is not None for table in found.values()) == 11
    return found


@pytest.fixture(scope="module")
def reference(models, tmp_path_factory) -> RunStore:
    return run(models, tmp_path_factory.mktemp("reference"), protocol())


def test_every_evaluation_of_the_protocol_has_its_rows(reference: RunStore):
    names = [e["name"] for e in reference.spec["evaluations"]]
    assert names == [
        "clean", "calibration", "pgd-s3-linf-0.1", CASCADE_NAME, "gaussian_noise-3", "shot_noise-3",
        "ood-photos", "gradients",
    ]  # fmt: skip
    assert all(reference.rows(name).num_rows == 32 for name in names)


def test_a_run_says_how_large_the_classes_of_all_test_samples_are(reference: RunStore):
    labels = data.load("digits").labels.tolist()
    assert reference.spec["data"]["class_sizes"] == [labels.count(k) for k in range(10)]


class Backwards(LocalExecutor):
    def run(self, job, store, chunks):
        return super().run(job, store, list(chunks)[::-1])


def test_the_order_of_chunks_changes_no_bit(models, reference, tmp_path):
    assert everything(run(models, tmp_path, protocol(), executor=Backwards())) == everything(reference)


@pytest.mark.parametrize("chunk", [8, 32, 5])
def test_the_size_of_chunks_changes_no_bit_at_equal_padded_batch(models, reference, tmp_path, chunk):
    store = run(models, tmp_path, protocol(chunk=chunk), batch=16)
    assert everything(store) == everything(reference)
    assert set(store.rows(CASCADE_NAME)["seeded_by"].to_pylist()) == {"sample"}
    assert set(store.rows("pgd-s3-linf-0.1")["seeded_by"].to_pylist()) == {"sample"}


def test_the_first_samples_of_a_larger_run_are_those_of_a_smaller_one(models, reference, tmp_path):
    store = run(models, tmp_path, protocol(), n=16)
    assert everything(store) == everything(reference, 16)


def test_n_may_grow_and_finished_chunks_stay(models, reference, tmp_path):
    run(models, tmp_path, protocol(), n=20)
    small = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("samples/*/*.parquet")}
    store = run(models, tmp_path, protocol(), n=32)
    assert everything(store) == everything(reference)
    assert all(f.stat().st_mtime_ns == t for f, t in small.items())


def test_another_batch_size_moves_clean_logits_by_rounding_alone(models, reference, tmp_path):
    store = run(models, tmp_path, protocol(), batch=7)
    for name, tolerance in (("clean", 1e-5), ("ood-photos", 1e-5)):
        one, other = (torch.tensor(s.rows(name)["logits"].to_pylist()) for s in (store, reference))
        assert (one - other).abs().max() <= tolerance
    name = "pgd-s3-linf-0.1"
    verdicts = [torch.tensor(s.rows(name)["draws_correct"].to_pylist()) for s in (store, reference)]
    assert (verdicts[0] == verdicts[1]).float().mean() >= 0.99


def test_a_second_run_computes_nothing(models, tmp_path):
    run(models, tmp_path, protocol())

    class Nothing(LocalExecutor):
        def run(self, job, store, chunks):
            assert list(chunks) == []
            return iter(())

    run(models, tmp_path, protocol(), executor=Nothing())


def test_progress_counts_what_is_right_so_far(models, tmp_path):
    steps: list[engine.Step] = []
    store = run(models, tmp_path, protocol(), progress=steps.append)
    assert [step.done for step in steps] == list(range(len(steps)))
    assert steps[0].chunk is None
    assert steps[-1].done == steps[-1].total
    last = {step.chunk.evaluation: step for step in steps[1:]}
    for name, step in last.items():
        rows = store.rows(name)
        if name.startswith("ood"):
            assert (step.labelled, step.correct) == (0, 0)
        else:
            logits = torch.tensor(rows["logits"].to_pylist())
            right = logits.argmax(1) == torch.tensor(rows["label"].to_pylist())
            assert (step.labelled, step.correct) == (len(rows), int(right.sum()))
    assert last.keys() >= {"clean", "ood-photos", CASCADE_NAME}


def test_a_changed_protocol_is_refused_with_what_changed(models, tmp_path):
    run(models, tmp_path, protocol())
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        engine.evaluate(models, protocol(seed=1), "digits", tmp_path)


def test_another_seed_gives_other_rows(models, reference, tmp_path):
    store = run(models, tmp_path, protocol(seed=1))
    assert store.rows("clean") == reference.rows("clean")
    assert store.rows("gaussian_noise-3") != reference.rows("gaussian_noise-3")
    assert store.adversarial("pgd-s3-linf-0.1") != reference.adversarial("pgd-s3-linf-0.1")


def test_models_that_are_compared_see_the_same_noise(models, tmp_path):
    file = tmp_path / "other.py"
    file.write_text(MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    outcome = engine.evaluate(
        [*models, *registry.resolve(f"{file}:net")], protocol(), "digits", tmp_path / "out"
    )
    one, other = (run.table("gradients", "guidance") for run in outcome.runs)
    assert one["reference_error"] == other["reference_error"]
    assert one["wiener_error"] == other["wiener_error"]
    assert one["guided_error"] != other["guided_error"]


def test_weights_that_changed_behind_the_same_code_are_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "import pathlib, torch\nfrom torch import nn\n"
        "def net():\n    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    model.load_state_dict(torch.load(pathlib.Path(__file__).with_name('w.pt')))\n    return model\n"
    )
    refs = registry.resolve(f"{tmp_path / 'net.py'}:net")
    small = protocol(evaluations=[{"kind": "clean"}])
    for seed in (0, 1):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(64, 10)
        torch.save({"1.weight": layer.weight, "1.bias": layer.bias}, tmp_path / "w.pt")
        if seed == 0:
            engine.evaluate(refs, small, "digits", tmp_path / "out")
    with pytest.raises(UserError, match="model: "):
        engine.evaluate(refs, small, "digits", tmp_path / "out")


def test_two_models_of_one_name_are_refused(models, tmp_path):
    other = tmp_path / "mine.py"
    other.write_text(MODEL)
    with pytest.raises(UserError, match="would both be named 'mine-net'"):
        registry.resolve_all([str(models[0]), f"{other}:net"], "digits")


def test_a_foreign_set_that_is_not_at_hand_is_refused_and_joins_later(models, tmp_path):
    import numpy as np

    foreign = tmp_path / "mine.npz"
    content = protocol().data["digits"].model_dump() | {"foreign": [str(foreign)]}
    wanting = protocol(data={"digits": content}, evaluations=[{"kind": "clean"}, {"kind": "ood"}])
    store = run(models, tmp_path / "out", wanting)
    assert [r["evaluation"] for r in store.spec["refused"]] == [f"ood-{registry.slug(str(foreign))}"]
    np.savez(foreign, images=np.zeros((5, 1, 8, 8), np.uint8), labels=np.zeros(5, np.int64))
    load_data.cache_clear()
    store = run(models, tmp_path / "out", wanting)
    assert store.spec["refused"] == []
    assert store.rows("ood-mine").num_rows == 5


def test_the_data_are_not_foreign_to_themselves(models, tmp_path):
    content = protocol().data["digits"].model_dump() | {"foreign": ["digits"]}
    chosen = protocol(data={"digits": content}, evaluations=[{"kind": "clean"}, {"kind": "ood"}])
    store = run(models, tmp_path / "out", chosen)
    assert [e["name"] for e in store.spec["evaluations"] if e["kind"] == "ood"] == []
    assert store.spec["refused"] == [
        {"evaluation": "ood-digits", "reason": "these foreign pictures are the data themselves"}
    ]


def test_a_slip_in_a_foreign_sets_name_is_an_error(models, tmp_path):
    content = protocol().data["digits"].model_dump() | {"foreign": ["leters"]}
    with pytest.raises(UserError, match="did you mean letters"):
        engine.evaluate(models, protocol(data={"digits": content}), "digits", tmp_path)


NOISY = """
import torch
from torch import nn
from robustgen.classifiers.base import Classifier

class Module(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))

class Declared(Classifier):
    num_classes, input_shape, stochastic = 10, (1, 8, 8), True

    def __init__(self):
        super().__init__()
        self.net, self.generator = nn.Sequential(*Module().children()), torch.Generator()

    def reseed(self, seed):
        self.generator.manual_seed(seed)

    def logits(self, x, sigma=None):
        return self.net(x + 0.1 * torch.randn(x.shape, generator=self.generator))
"""


@pytest.fixture
def with_noise(monkeypatch) -> Protocol:
    """Every kind of evaluation, and random noise among the attacks."""
    monkeypatch.setitem(attacks.ATTACKS, "noise", attacks.Entry("noise:RandomNoise", ""))
    noise = {"kind": "attack", "attack": "noise", "norm": "linf"}
    return protocol(evaluations=[*protocol().model_dump()["evaluations"], noise])


@pytest.mark.parametrize("name", ["Module", "Declared"])
def test_a_stochastic_model_is_judged_by_draws_of_each_chunk(with_noise, tmp_path, name):
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    refs = registry.resolve(f"{file}:{name}")
    store, again = (run(refs, tmp_path / out, with_noise) for out in ("one", "other"))
    assert store.spec["model"]["stochastic"] is True
    assert store.spec["model"]["stochastic_declared"] is (name == "Declared")
    assert store.spec["identity"]["draws"] == 32
    for evaluation in (e["name"] for e in store.spec["evaluations"]):
        rows = store.rows(evaluation)
        assert rows == again.rows(evaluation)
        assert store.adversarial(evaluation) == again.adversarial(evaluation)
        assert store.table(evaluation, "guidance") == again.table(evaluation, "guidance")
        assert set(rows["draws"].to_pylist()) == {32}
        assert set(rows["seeded_by"].to_pylist()) == {"chunk"}
    found = {(m.evaluation, m.variant) for m in accuracies(store)}
    for evaluation in ("clean", "noise-linf-0.1", "pgd-s3-linf-0.1", "shot_noise-3"):
        assert {variant for e, variant in found if e == evaluation} == {"", "majority", "worst-of-10"}


def accuracies(store: RunStore) -> list[Metric]:
    return [e.metric for e in measure(read_run(store)) if e.metric.metric.endswith("accuracy")]


def test_a_stochastic_run_goes_on_as_it_began(with_noise, tmp_path):
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    refs = registry.resolve(f"{file}:Module")
    run(refs, tmp_path / "out", with_noise, n=16)
    grown = run(refs, tmp_path / "out", with_noise)
    assert grown.rows("clean") == run(refs, tmp_path / "whole", with_noise).rows("clean")


def test_a_deterministic_model_is_not_taken_for_a_stochastic_one(reference):
    assert reference.spec["model"]["stochastic"] is False
    assert "stochastic_declared" not in reference.spec["model"]
    assert "draws" not in reference.spec["identity"]
    stages = ("apgd-ce", "apgd-t", "fab-t", "square", "all", "noise")
    assert {m.variant for m in accuracies(reference)} <= {"", *stages}


@pytest.mark.parametrize("mixes", [True, False])
def test_a_model_that_mixes_the_pictures_of_a_batch_is_found_out(tmp_path, mixes):
    """As batch-norm does that takes its statistics from the batch."""
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.BatchNorm2d(1, "
        f"track_running_stats={not mixes}), nn.Flatten(), nn.Linear(64, 10))\n"
    )
    store = run(registry.resolve(f"{file}:net"), tmp_path / "out", protocol(), n=8)
    assert store.spec["model"].get("mixes", False) is mixes
    found = {flag.flag for flag in find_doubts(read_run(store))}
    assert ("mixed_batch" in found) is mixes


@pytest.mark.parametrize("what", ["w.npy", "t.json"])
def test_a_model_that_answers_otherwise_than_its_run_is_found_out(tmp_path, what):
    """Its weights and its temperature are in no state_dict, and its code is as before."""
    import json

    import numpy as np

    file, out = tmp_path / "net.py", tmp_path / "out"
    file.write_text(
        "import json, pathlib, numpy, torch\nhere = pathlib.Path(__file__).parent\n"
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = torch.from_numpy(numpy.load(here / 'w.npy'))\n"
        "        self.t = json.loads((here / 't.json').read_text())\n"
        "    def forward(self, x):\n        return x.flatten(1) @ self.w / self.t\n"
    )
    draw = np.random.default_rng(0).normal(size=(2, 64, 10)).astype(np.float32)
    np.save(tmp_path / "w.npy", draw[0])
    (tmp_path / "t.json").write_text("1.0")
    refs = registry.resolve(f"{file}:Net")
    before = run(refs, out, protocol(evaluations=[{"kind": "clean"}]), n=8)
    again = run(refs, out, protocol(evaluations=[{"kind": "clean"}]), n=8)
    assert again.rows("clean") == before.rows("clean")
    if what == "w.npy":
        np.save(tmp_path / what, draw[1])
    else:
        (tmp_path / what).write_text(json.dumps(2.0))
    with pytest.raises(UserError, match="does not answer as it did"):
        run(refs, out, protocol(evaluations=[{"kind": "clean"}]), n=8)


def test_what_was_refused_is_written_down_with_its_reason(models, tmp_path):
    corruptions = {"kind": "corruptions", "types": ["fog", "brightness"], "severities": [1]}
    store = run(models, tmp_path, protocol(evaluations=[{"kind": "clean"}, corruptions]))
    assert [r["evaluation"] for r in store.spec["refused"]] == ["fog"]
    assert "28x28" in store.spec["refused"][0]["reason"]


RAISES = '''
import torch
from torch import nn

class Net(nn.Module):
    """Raises, or returns NaN, once it has been asked about enough pictures."""
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        logits = self.head(x.flatten(1))
        if self.asked > 76:
            {action}
        return logits
'''


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("raise ValueError('out of luck')", "ValueError: out of luck"),
        ("logits = logits * float('nan')", "NaN"),
    ],
)
def test_a_model_that_fails_midway_keeps_what_is_finished_and_lets_others_go_on(
    models, tmp_path, action, message
):
    file = tmp_path / "bad.py"
    file.write_text(RAISES.format(action=action))
    both = [*registry.resolve(f"{file}:Net"), *models]
    small = protocol(evaluations=[{"kind": "clean"}], n=128)
    outcome = engine.evaluate(both, small, "digits", tmp_path / "out")
    assert message in outcome.failures["bad-net"]
    bad, good = outcome.runs
    assert 0 < bad.rows("clean").num_rows < 128
    assert good.rows("clean").num_rows == 128
    assert len((bad.path / "errors.jsonl").read_text().splitlines()) >= 1


def test_a_failed_chunk_is_tried_again(tmp_path):
    file, luck = tmp_path / "moody.py", tmp_path / "luck"
    file.write_text(
        "import pathlib\nimport torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n        torch.manual_seed(0)\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
        "        self.calls = 0\n"
        "    def forward(self, x):\n        self.calls += 1\n"
        f"        assert self.calls < 4 or pathlib.Path({str(luck)!r}).exists()\n"
        "        return super().forward(x)\n"
    )
    refs = registry.resolve(f"{file}:Net")
    small = protocol(evaluations=[{"kind": "clean"}])
    assert engine.evaluate(refs, small, "digits", tmp_path / "out").failures
    luck.touch()
    outcome = engine.evaluate(refs, small, "digits", tmp_path / "out")
    assert outcome.failures == {}
    assert outcome.runs[0].rows("clean").num_rows == 32


def test_a_model_for_other_data_is_refused_in_words(tmp_path):
    file = tmp_path / "wide.py"
    file.write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    with pytest.raises(UserError, match="fails on a batch of the data's shape"):
        engine.evaluate(registry.resolve(f"{file}:net"), protocol(), "digits", tmp_path / "out")


def test_foreign_pictures_have_no_label_and_the_shape_of_the_data(reference):
    rows = reference.rows("ood-photos")
    assert set(rows["label"].to_pylist()) == {-1}
    assert data.load("photos", shape=(1, 8, 8)).shape == (1, 8, 8)
