"""The top level shows who touches what, and its three data folders say what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustgen import registry

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"models": "robustgen/classifiers", "attacks": "robustgen/attacks", "reports": "robustgen/report"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_says_what_the_folder_is_where_its_code_is_and_what_is_in_it(folder: str):
    text = (ROOT / folder / "README.md").read_text()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert FOLDERS[folder] in first
    there = {
        p.name for p in (ROOT / folder).iterdir() if p.name != "README.md" and not p.name.startswith(".")
    }
    listed = {line.split("`")[1].rstrip("/") for line in text.splitlines() if line.startswith("| `")}
    assert listed == there


def test_every_card_loads_and_its_weights_stay_small():
    for folder in registry.model_folders().values():
        card = registry.load_card(folder)
        assert (card.weights is None) == (card.over is not None)
        if card.weights is not None:
            assert (folder / card.weights.file).stat().st_size <= 24 * 2**20
            assert (folder / card.recipe).is_file()


def test_the_tests_mirror_the_package():
    package, tests = ROOT / "robustgen", ROOT / "tests"
    without = {
        str(module)
        for module in (p.relative_to(package) for p in package.rglob("*.py") if p.stem != "__init__")
        # a module has a file of its own, or shares its folder's or its package's
        if not any(
            (tests / module.parent / f"test_{name}.py").is_file() or (tests / f"test_{name}.py").is_file()
            for name in (module.stem, module.parent.name)
        )
    }
    # types have no behaviour; the others are run through the commands and the engine
    assert without <= {
        "types.py",
        "parquet.py",  # through the store
        "catalogue.py",
        "environment.py",
        "evaluation.py",
        "executors.py",
        "worker.py",
    }
