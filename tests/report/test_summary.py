"""summarise: what is written, which flags are raised, what is left out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import report_fakes as fakes

from robustgen.errors import UserError
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.measure import measure
from robustgen.metrics.rows import TABLES, read_run
from robustgen.report.render import render
from robustgen.report.summary import gather, headline, summarise
from robustgen.store import Chunk, RunStore

Attacked = Callable[..., RunStore]


def values(out: Path, store: RunStore, n: int | None = None) -> dict[tuple[str, str, str], float]:
    return {
        (e.metric.evaluation, e.metric.variant, e.metric.metric): e.metric.value
        for e in measure(read_run(store, n))
    }


def write(store: RunStore, evaluation: str, labels: list[int], predicted: list[int], **columns: Any) -> None:
    logits = np.eye(10, dtype=np.float32)[predicted]
    rows = fakes.make_rows(np.asarray(labels), logits, **columns)
    store.write(Chunk(evaluation, 0, len(labels)), rows)


@pytest.fixture
def attacked(tmp_path: Path) -> Attacked:
    """A run of samples, of which attacks by name leave these predictions; all labels are 0."""

    def make(
        details: list[dict[str, Any]], clean: list[int], *after: tuple[list[int], dict[str, Any]]
    ) -> RunStore:
        plain = {"name": "clean", "kind": "clean", "data": "digits", "size": len(clean)}
        store = RunStore.open(
            tmp_path / "runs/m", fakes.spec("m", size=len(clean), evaluations=[plain, *details]), {}
        )
        write(store, "clean", [0] * len(clean), clean)
        for detail, (predicted, columns) in zip(details, after, strict=True):
            write(store, detail["name"], [0] * len(clean), predicted, **columns)
        return store

    return make


def test_a_cascade_stage_by_stage(tmp_path: Path, attacked: Attacked) -> None:
    detail = fakes.attack("autoattack", "linf", 0.15, ["apgd-ce", "square"], size=4)
    broken = {"broken_by": [None, "apgd-ce", "square", None]}
    store = attacked([detail], [1, 0, 0, 0], ([1, 2, 2, 0], broken))
    found = values(tmp_path, store)
    name = "autoattack-linf-0.15"
    assert found[name, "apgd-ce", "robust_accuracy"] == 0.5  # the first was wrong from the start
    assert found[name, "square", "robust_accuracy"] == found[name, "", "robust_accuracy"] == 0.25


def test_the_worst_case_falls_with_eps_by_construction(tmp_path: Path, attacked: Attacked) -> None:
    details = [fakes.attack("pgd", "linf", eps, size=4) for eps in (0.2, 0.1, 0.3)]
    # the smallest ball breaks sample 0, the largest only sample 3; another norm has no part in it
    details.append(fakes.attack("pgd", "l2", 0.1, size=4))
    after = [([0, 1, 0, 0], {}), ([1, 0, 0, 0], {}), ([0, 0, 0, 1], {}), ([1, 1, 1, 1], {})]
    found = values(tmp_path, attacked(details, [0, 0, 0, 0], *after))
    worst = [found[f"worst-linf-{eps}", "", "robust_accuracy"] for eps in (0.1, 0.2, 0.3)]
    assert worst == [0.75, 0.5, 0.25]
    assert found["worst-l2-0.1", "", "robust_accuracy"] == 0


def test_the_first_n_samples_only(tmp_path: Path) -> None:
    store = fakes.write_run(tmp_path, "m", size=60)
    assert {e.metric.n for e in measure(read_run(store, 20)) if e.metric.metric == "accuracy"} == {20}


def test_a_picture_takes_the_same_time_in_a_report_of_fewer_samples(tmp_path: Path) -> None:
    store = fakes.write_run(tmp_path, "m", size=60)
    for n in (10, 40, None):
        costs = summarise(tmp_path, [store], n, "")["models"][0]["costs"]
        (clean,) = [cost for cost in costs if cost["evaluation"] == "clean"]
        assert clean["seconds"] / clean["n"] == pytest.approx(1 / 60)


def test_log_prob_and_bits_only_where_they_mean_something(tmp_path: Path) -> None:
    joint = fakes.write_run(tmp_path, "joint", joint=True, density="unnormalised")
    exact = fakes.write_run(tmp_path, "exact", joint=True, density="exact")
    plain = fakes.write_run(tmp_path, "plain")
    has = {
        store.model: (("ood-letters", "log_prob", "auroc") in found, ("clean", "", "bits_per_dim") in found)
        for store in (joint, exact, plain)
        for found in [values(tmp_path, store)]
    }
    assert has == {"joint": (True, False), "exact": (True, True), "plain": (False, False)}


# --- flags -------------------------------------------------------------------------------------------


def flags(store: RunStore) -> dict[str, str]:
    return {flag.flag: flag.message for flag in find_doubts(read_run(store))}


def test_flags_of_attacks(attacked: Attacked) -> None:
    cascade = fakes.attack("autoattack", "linf", 0.15, ["apgd-ce", "square"], size=10)
    large = fakes.attack("pgd", "linf", 0.5, size=10)
    columns = {"broken_by": [None, "square"] + [None] * 8, "within_budget": [False] + [True] * 9}
    store = attacked(
        [cascade, large], [1] * 5 + [0] * 5,
        ([0] * 10, columns | {"seeded_by": ["chunk"] * 10}), ([0] * 10, {"within_budget": [None] * 10}),
    )  # fmt: skip
    found = flags(store)
    assert "broke 1 of 10" in found["masked_gradients"]
    assert "1 of 10 perturbed pictures are outside" in found["outside_budget"]
    assert "10 of 10 right under attack, 5 without" in found["easier_than_clean"]
    assert "attack_fails" not in found, "of one class alone all can be right on grey"
    assert "autoattack-linf-0.15" in found["seeded_by_chunk"]
    assert "±" in found["few_samples"]
    assert "no_calibration" in found
    assert "incomplete" not in found


@pytest.mark.parametrize(
    ("stops", "n", "counted"),
    [
        ([16, 32, 41], None, 12),
        ([9, 16, 21, 32, 41], None, 20),  # after n = 9, 21 and 41: 4 in each
        ([16, 32, 41], 9, 3),  # of 0, 4, 8 and 12
    ],
)
def test_the_audit_is_counted_by_the_chunks_that_were_computed(
    tmp_path: Path, stops: list[int], n: int | None, counted: int
) -> None:
    stages = ["apgd-ce", "apgd-t", "fab-t", "square"]
    detail = fakes.attack("autoattack", "linf", 0.15, stages, size=41) | {"thorough": False}
    store = RunStore.open(tmp_path, fakes.spec("m", size=41, evaluations=[detail]), {})
    rows = fakes.make_rows(np.zeros(41, dtype=int), np.eye(10)[np.zeros(41, dtype=int)])
    for start, stop in pairwise([0, *stops]):
        store.write(Chunk(detail["name"], start, stop), fakes.part(rows, start, stop))
    (flag,) = [f for f in find_doubts(read_run(store, n)) if f.flag == "audit"]
    assert flag.message.startswith(f"0 of {counted} audited survivors")


def test_the_gravest_flags_of_all_models_come_first(tmp_path: Path) -> None:
    stores = [fakes.write_run(tmp_path / name, name, size=60) for name in ("a", "b")]
    for store in stores:
        (store.path / "samples" / "clean" / "000030-000060.parquet").unlink()
    content = summarise(tmp_path, stores, None, "", failures={"c": "it could not be loaded"})
    severities = [flag["severity"] for flag in content["flags"]]
    order = ["error", "warning", "info"]
    assert severities == sorted(severities, key=order.index)
    assert {flag["model"] for flag in content["flags"] if flag["severity"] == "error"} == {"a", "b", "c"}
    assert len(set(severities)) > 1


def test_an_incomplete_evaluation_says_how_many_and_why(tmp_path: Path) -> None:
    store = fakes.write_run(tmp_path, "m", size=60)
    gone = store.path / "samples" / "clean" / "000030-000060.parquet"
    gone.unlink()
    store.log_error("the model returned NaN\nmore", Chunk("clean", 30, 60))
    raised = UserError(
        "this attack failed", where="mine.py", got="ValueError: got: nothing", remedy="mend it"
    )
    store.log_error(str(raised), Chunk("clean", 30, 60))
    (flag,) = [f for f in find_doubts(read_run(store)) if f.flag == "incomplete"]
    assert flag.severity == "error"
    assert flag.evaluation == "clean"
    assert flag.message.startswith(
        "30 of 60 evaluated. The last failure: this attack failed; got: ValueError: got: nothing. Run"
    )


@pytest.mark.parametrize(("kind", "table"), TABLES.items())
def test_a_lost_table_of_any_kind_is_noticed(tmp_path: Path, kind: str, table: str) -> None:
    detail = {"name": "it", "kind": kind, "data": "digits", "size": 6}
    store = RunStore.open(tmp_path / "m", fakes.spec("m", size=6, evaluations=[detail]), {})
    rows = fakes.make_rows(np.zeros(6, int), np.eye(10, dtype=np.float32)[[0] * 6])
    empty = pa.table({"sample_id": pa.array([], pa.int64())})  # as of a model that it cannot be read of
    for start, stop in ((0, 4), (4, 6)):
        store.write(Chunk("it", start, stop), rows[start:stop], tables={table: empty})
    assert read_run(store).evaluations["it"].lost == 0
    (store.path / f"tables/it/{table}/000000-000004.parquet").unlink()
    assert [read_run(store, n).evaluations["it"].lost for n in (3, None)] == [3, 4]
    store.write(Chunk("it", 0, 2), rows[:2], tables={table: empty})  # by a run of fewer samples
    assert read_run(store).evaluations["it"].lost == 2


def test_a_refused_evaluation_is_named(tmp_path: Path) -> None:
    store = fakes.write_run(tmp_path, "m", refused=[{"evaluation": "fog", "reason": "8x8 is too small"}])
    assert "8x8 is too small" in flags(store)["left_out"]


# --- what is written ---------------------------------------------------------------------------------


def test_summary_json_and_csv_hold_the_same(written: tuple[Path, dict[str, Any]]) -> None:
    out, summary = written
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == summary
    assert {"robustgen", "created", "data", "protocol", "models", "metrics", "flags"} <= summary.keys()
    with (out / "summary.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [m["value"] for m in summary["metrics"]]


def test_headline_is_the_main_table_on_its_side(written: tuple[Path, dict[str, Any]]) -> None:
    columns, rows = headline(written[1])
    assert columns[1] == "softmax\ndigits"
    assert rows[0][0] == "Clean: accuracy"
    assert all(len(row) == len(columns) for row in rows)


def test_nothing_to_summarise_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to summarise"):
        summarise(tmp_path, [], None, "")


def test_gather_puts_reports_together_or_says_why_not(tmp_path: Path) -> None:
    for name, n in (("a", 40), ("b", 20)):
        summarise(tmp_path / name, [fakes.write_run(tmp_path / name, f"model-{name}")], n, "")
    runs, n, _ = gather([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert [store.model for store in runs] == ["model-a", "model-b"]
    assert n == 20
    summary = summarise(tmp_path / "both", runs, n, "robustgen compare a b --out both")
    assert summary["models"][1]["path"] == "../b/runs/model-b"
    for again in ("a", "a/../a"):
        with pytest.raises(UserError, match="two reports have a model"):
            gather([tmp_path / "a", tmp_path / again], tmp_path / "twice")
    other = fakes.spec("other")["data"] | {"fingerprint": "beef"}
    summarise(tmp_path / "c", [fakes.write_run(tmp_path / "c", "model-c", data=other)], None, "")
    with pytest.raises(UserError, match="they differ in data"):
        gather([tmp_path / "a", tmp_path / "c"], tmp_path / "mixed")
    other = fakes.spec("other")["protocol"] | {"seed": 7, "summary": "Other words."}
    summarise(tmp_path / "d", [fakes.write_run(tmp_path / "d", "model-d", protocol=other)], None, "")
    with pytest.raises(UserError, match="two different protocols are named 'quick'") as error:
        gather([tmp_path / "a", tmp_path / "d"], tmp_path / "mixed")
    assert "seed 0" in str(error.value)
    assert "got:      seed 7" in str(error.value)
    assert "words" not in str(error.value)


def test_a_folder_without_a_report_is_told(tmp_path: Path) -> None:
    for read in (render, lambda folder: gather([folder], tmp_path / "both")):
        with pytest.raises(UserError, match="there is no report here"):
            read(tmp_path / "nothing")


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path: Path) -> None:
    summarise(tmp_path / "a", [fakes.write_run(tmp_path / "a", "model-a")], None, "")
    for out in (tmp_path / "a" / "summary.json", tmp_path / "a" / "summary.json" / "both"):
        with pytest.raises(UserError, match=r"cannot write(.|\n)*summary\.json"):
            gather([tmp_path / "a"], out)


def test_models_of_which_there_is_nothing_and_estimates_stay_in_a_summary_of_summaries(
    tmp_path: Path,
) -> None:
    foretold = {"seconds": 1.0, "evaluations": []}
    failures = {"one": "cannot be loaded", "model-b": "neither"}
    run = fakes.write_run(tmp_path / "a", "model-a")
    summarise(tmp_path / "a", [run], 40, "", failures, {"model-a": foretold})
    summarise(tmp_path / "b", [fakes.write_run(tmp_path / "b", "model-b")], 40, "", {"one": "here neither"})
    folders = [tmp_path / "a", tmp_path / "b"]
    runs, n, earlier = gather(folders, tmp_path / "both")
    found = summarise(tmp_path / "both", runs, n, "", earlier=earlier)
    (flag,) = [flag for flag in found["flags"] if flag["flag"] == "not_evaluated"]
    assert (flag["model"], flag["severity"]) == ("one", "error"), "model-b has rows by now"
    assert [model["estimate"] for model in found["models"]] == [foretold, None]
    fewer = summarise(tmp_path / "both", runs, 20, "", earlier=earlier)
    assert fewer["models"][0]["estimate"] is None, "it was of 40 samples"


@pytest.mark.parametrize("content", ["{}", "[]", '{"models": [{}], "n": 3}', '{"models": []}', "null"])
def test_gather_of_what_is_no_summary_is_a_users_mistake(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match="not the summary of a report"):
        gather([tmp_path], tmp_path / "out")
