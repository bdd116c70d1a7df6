"""Slow results of benchmarks, kept in the user's cache folder by the hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from robustgen.places import cache_folder


def kept(name: str, said: object, tensors: Iterable[Tensor], compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns (of JSON's types), once for what was ``said`` and these tensors.

    ``said``: what else it depends on, told apart by its repr; ``name`` begins the file's.
    """
    known = hashlib.sha256(repr(said).encode())
    for tensor in tensors:
        known.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    folder = cache_folder() / "benchmarks"
    file = folder / f"{name}-{known.hexdigest()[:16]}.json"
    if file.is_file():
        return json.loads(file.read_text())
    result = compute()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(file)
    return result
