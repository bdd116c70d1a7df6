"""What a device is told before anything is computed on it, and which code rows are made by."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from torch.backends import cuda, cudnn

from robustgen import environment
from robustgen.environment import make_exact


def test_a_gpu_computes_in_float32_and_repeats_itself() -> None:
    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    loose = (True, True, False, True)
    try:
        cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = loose
        make_exact(torch.device("cpu"))
        said = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        assert said == loose, "a run on the processor changes what a GPU is told"
        make_exact(torch.device("cuda"))
        said = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        assert said == (False, False, True, False)
    finally:
        cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.parametrize(
    ("edited", "counts"),
    [("attacks/apgd.py", True), ("attacks/outside/foolbox.py", True), ("corruptions/blur.py", True),
     ("worker.py", True), ("metrics/verdicts.py", True),
     ("metrics/calibration.py", False), ("report/render.py", False), ("cli.py", False)],
)  # fmt: skip
def test_rows_are_known_by_the_code_that_made_them(tmp_path: Path, edited: str, counts: bool) -> None:
    """Of an edited copy of the package, by what the copy itself says."""
    copy = tmp_path / "robustgen"
    shutil.copytree(Path(environment.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def code() -> str:
        found = importlib.util.spec_from_file_location("copied", copy / "environment.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module.row_code()

    assert code() == environment.row_code()
    with (copy / edited).open("a") as file:
        file.write("\nSTEPS = 1\n")
    assert (code() != environment.row_code()) == counts
