"""What every test may use. Tests that need ROBUSTGEN_DATA skip without it, each with its reason;
where ROBUSTGEN_REQUIRE_DATA is set (in CI), such a skip is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# The nets of these tests are so small that a second thread only waits for the first.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that are not carried by a package."""
    folder = os.environ.get("ROBUSTGEN_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("ROBUSTGEN_REQUIRE_DATA"):
        pytest.fail("ROBUSTGEN_REQUIRE_DATA is set, and ROBUSTGEN_DATA names no folder")
    pytest.skip("needs real data: set ROBUSTGEN_DATA to a folder with MNIST, cifar10 and textures")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and protocols are looked up from the working directory."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _same_generator() -> None:
    torch.manual_seed(0)
