"""What a device is told before anything is computed on it."""

from __future__ import annotations

import torch
from torch.backends import cuda, cudnn

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
