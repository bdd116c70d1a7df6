"""A stored run's model and data, and what is refused where either is no more what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustgen import engine, load_data, load_model, registry
from robustgen.errors import UserError
from robustgen.reload import reload_run
from robustgen.store import RunStore

NAME = "softmax-digits"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    out = tmp_path_factory.mktemp("report")
    protocol = registry.load_protocol("clean").model_copy(update={"n": 8})
    assert engine.evaluate(registry.resolve_all([NAME], "digits"), protocol, "digits", out).failures == {}
    return RunStore.read(out / "runs" / NAME)


def changed(run: RunStore, path: Path, **parts: dict[str, Any]) -> RunStore:
    """The run as it would be by another specification."""
    return RunStore.open(
        path, run.spec | {name: run.spec[name] | part for name, part in parts.items()}, run.environment
    )


def test_the_model_is_called_as_it_was_on_the_same_data(stored: RunStore) -> None:
    threads = torch.get_num_threads()
    model, digits = reload_run(stored)
    torch.set_num_threads(threads)
    assert torch.equal(digits.images, load_data("digits").images)
    assert model.batch == stored.spec["kernels"]["batch"]
    table = stored.rows("clean")
    assert table is not None
    again = model.logits(digits.images[:8])
    assert torch.equal(again, torch.tensor(table["logits"].to_pylist()))
    torch.testing.assert_close(again, load_model(NAME).logits(digits.images[:8]))


def test_a_run_that_was_random_is_asked_as_a_random_model(stored: RunStore, tmp_path: Path) -> None:
    assert not reload_run(stored)[0].stochastic
    assert reload_run(changed(stored, tmp_path, model={"stochastic": True}))[0].stochastic


@pytest.mark.parametrize(
    ("part", "says"), [("model", "not the one of the run"), ("data", "not those of the run")]
)
def test_what_was_changed_since_is_refused(stored: RunStore, tmp_path: Path, part: str, says: str) -> None:
    run = changed(stored, tmp_path, **{part: {"fingerprint": "beef"}})
    with pytest.raises(UserError, match=says) as caught:
        reload_run(run)
    assert "beef" in str(caught.value)
    assert part == "data" or f"what changed in {NAME}" in str(caught.value)


def test_a_code_file_that_does_not_exist_is_told(stored: RunStore) -> None:
    with pytest.raises(UserError, match="there is no such Python file") as caught:
        reload_run(stored, code=[Path("wrong.py")])
    assert caught.value.details["got"] == Path("wrong.py")
