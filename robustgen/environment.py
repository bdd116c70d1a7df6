"""What a run is computed with: package versions, processor, cores, and the code that makes rows."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROW_MAKERS = (
    "attacks/**/*.py", "classifiers/**/*.py", "corruptions/**/*.py", "data/**/*.py", "gradients/**/*.py",
    "plan/**/*.py", "audit.py", "detectors.py", "draws.py", "evaluation.py", "metrics/verdicts.py",
    "perturb.py", "rowtable.py", "scores.py", "threat.py", "verdict.py", "job.py", "worker.py",
)  # fmt: skip
"""The modules of robustgen that decide what is in a row, as glob patterns."""


@functools.cache
def row_code() -> str:
    """sha256 of the code that makes rows; after an edit of it, new rows cannot be mixed with old ones."""
    root = Path(__file__).parent
    files = sorted(file for pattern in ROW_MAKERS for file in root.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def environment() -> dict[str, str]:
    """Package versions, Python, processor and cores, as run.json has them.

    The versions that rows depend on are part of the run's identity too (runspec.py).
    """
    names = [
        "robustgen", "torch", "torchvision", "numpy", "pandas", "pyarrow", "scipy", "pillow", "pyautoattack",
        "torchattacks", "foolbox", "imagecorruptions", "scikit-image", "opencv-python",
        "opencv-python-headless",
    ]  # fmt: skip
    found = {name: version_of(name) for name in names}
    return {
        **{name: version for name, version in found.items() if version},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": str(os.cpu_count()),
    }


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic; a processor that emulates it takes about 100 times as long
    as in float32 (a U-Net's training step, AVX2)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_exact(device: torch.device) -> None:
    """On a GPU, turn off TF32 and kernels that are not deterministic."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def threads_for(shape: tuple[int, int, int]) -> int:
    """The number of torch threads for images of this shape (channels, height, width).

    With a few hundred values per image, a second thread costs more in synchronisation than it computes.
    """
    import torch

    return 1 if math.prod(shape) <= 1024 else torch.get_num_threads()


def version_of(package: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
