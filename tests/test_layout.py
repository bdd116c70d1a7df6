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
        assert card.weights is not None
        assert (folder / card.weights.file).stat().st_size <= 24 * 2**20
        assert (folder / card.recipe).is_file()


def test_the_tests_mirror_the_package():
    package, tests = ROOT / "robustgen", ROOT / "tests"
    modules = {p.relative_to(package) for p in package.rglob("*.py") if p.stem != "__init__"}
    names = {module: (module.stem, module.parent.name) for module in modules}
    without = {
        module
        for module in modules
        if not any(list((tests / module.parent).glob(f"test_{name}*.py")) for name in names[module] if name)
    }
    # types has no behaviour; catalogue and executors are exercised through cli and engine
    assert without <= {Path(p) for p in ("types.py", "catalogue.py", "executors.py")}
