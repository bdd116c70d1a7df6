"""Models of other libraries: ``robustbench:NAME``, ``timm:NAME`` and ``torchvision:NAME``.

Each loader gives a plain ``torch.nn.Module`` in eval mode that maps images in [0, 1] to logits. A package is
imported when one of its models is asked for, not before: importing robustbench takes about ten seconds.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from robustgen.errors import UserError, missing_package

if TYPE_CHECKING:
    from torch import nn

# torch.load obeys this even where the caller, as torchvision does, asks for pickled code to be run.
TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load(library: str, name: str) -> nn.Module:
    """The model of that name from robustbench, timm or torchvision."""
    if library not in LOADERS:
        raise _unknown("model source", library, LOADERS)
    return LOADERS[library](name)


def load_robustbench(name: str, model_dir: Path | None = None) -> nn.Module:
    """A model of RobustBench's zoo: ``DATASET/THREAT/NAME``, or NAME alone for cifar10/Linf.

    Weights are kept in `model_dir`, by default the folder robustbench of torch's cache.
    """
    robustbench = import_robustbench()
    zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    parts = name.split("/")
    dataset, threat, model = parts if len(parts) == 3 else ("cifar10", "Linf", name)
    models = {(d.value, t.value): names for d, by_threat in zoo.items() for t, names in by_threat.items()}
    if len(parts) not in (1, 3) or (dataset, threat) not in models:
        raise UserError(
            f"robustbench has no such set of models: {name!r}",
            expected="NAME or DATASET/THREAT/NAME, with DATASET/THREAT one of "
            + ", ".join(f"{d}/{t}" for d, t in models),
            got=name,
        )
    if model not in models[dataset, threat]:
        raise _unknown(f"robustbench model for {dataset}/{threat}", model, models[dataset, threat])
    folder = model_dir or _cache() / "robustbench"
    with _load_errors(f"robustbench:{name}", f"place its checkpoint under {folder / dataset / threat}"):
        module = robustbench.load_model(model, model_dir=folder, dataset=dataset, threat_model=threat)
    return module.eval()


def load_timm(name: str) -> nn.Module:
    """A pretrained timm model, or ``local-dir:FOLDER`` with timm's config.json and weights in it."""
    timm = _require("timm", "timm")
    if ":" not in name and not timm.is_model(name):
        raise _unknown("timm model", name, timm.list_models())
    if ":" not in name and not timm.models.is_model_pretrained(name):
        tags = [n for n in timm.list_pretrained() if n.partition(".")[0] == name.partition(".")[0]]
        raise UserError(
            "timm has no weights of that name, and an untrained model would be evaluated",
            expected=" or ".join(tags) or "a model of timm.list_pretrained()",
            got=name,
        )
    with _load_errors(f"timm:{name}", "use timm:local-dir:FOLDER with its files"):
        module = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(module)
    return _normalised(module, config["mean"], config["std"])


def load_torchvision(name: str) -> nn.Module:
    """A pretrained classifier of torchvision: ``NAME`` for its default weights, or ``NAME/WEIGHTS``."""
    models = importlib.import_module("torchvision").models
    model, _, wanted = name.partition("/")
    # Only the classifiers: torchvision also lists detectors, video and quantised models.
    known = models.list_models(module=models)
    if model not in known:
        raise _unknown("torchvision classifier", model, known)
    entries = models.get_model_weights(model).__members__
    if wanted and wanted not in entries:
        raise _unknown(f"set of weights for torchvision's {model}", wanted, entries)
    weights = entries[wanted or "DEFAULT"]
    place = _cache() / "checkpoints" / weights.url.rpartition("/")[2]
    with _load_errors(f"torchvision:{name}", f"place its weights at {place}"):
        module = models.get_model(model, weights=weights)
    transforms = weights.transforms()
    return _normalised(module, transforms.mean, transforms.std)


LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "robustbench": load_robustbench,
    "timm": load_timm,
    "torchvision": load_torchvision,
}


def import_robustbench() -> ModuleType:
    """Import robustbench, with a stand-in for the package autoattack, which it needs and no index offers."""
    check_robustbench()
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        stand_in = importlib.import_module("robustgen.classifiers.upstream_autoattack")
        sys.modules["autoattack"] = sys.modules["autoattack.state"] = stand_in
    with warnings.catch_warnings():
        # robustbench's own deprecated imports of timm and pkg_resources do not concern the user
        warnings.simplefilter("ignore", (FutureWarning, UserWarning, DeprecationWarning))
        return _require("robustbench", "robustbench")


def check_robustbench() -> None:
    """Raise unless the installed files are those of robustbench's own wheel.

    The wheel of torchattacks carries a stale copy of robustbench in the same place, with fewer models and no
    ``benchmark``; which of the two is on disk depends on the order of installation.
    """
    try:
        distribution = importlib.metadata.distribution("robustbench")
    except importlib.metadata.PackageNotFoundError:
        raise missing_package("robustbench", "robustbench", "a model robustbench:NAME") from None
    hashed = [(file, file.hash.value) for file in distribution.files or [] if file.hash]
    differing = [str(file) for file, expected in hashed if _record_hash(Path(str(file.locate()))) != expected]
    if differing:
        raise UserError(
            "the installed robustbench is not the one of its own package: another one overwrote it, "
            "as the wheel of torchattacks does",
            where=", ".join(differing[:3]) + (", ..." if len(differing) > 3 else ""),
            expected=f"{len(hashed)} files with the hashes of robustbench {distribution.version}",
            got=f"{len(differing)} of them missing or different",
            remedy=f"pip install --force-reinstall --no-deps robustbench=={distribution.version} "
            "(in a checkout: touch pyproject.toml && make .venv/.ready)",
        )


def _record_hash(path: Path) -> str | None:
    """The file's sha256 as a wheel's RECORD writes it; None for a file that is missing."""
    if not path.is_file():
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def _require(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package(error.name or module, extra, f"a model {module}:NAME") from error


def _normalised(module: nn.Module, mean: Iterable[float], std: Iterable[float]) -> nn.Module:
    from torch import nn
    from torchvision.transforms import Normalize

    return nn.Sequential(Normalize(list(mean), list(std)), module).eval()


def _cache() -> Path:
    import torch

    return Path(torch.hub.get_dir())


@contextmanager
def _load_errors(reference: str, without_network: str) -> Iterator[None]:
    """Turn any exception of another library's loader into a UserError with a remedy."""
    before = os.environ.get(TENSORS_ONLY)
    os.environ[TENSORS_ONLY] = "1"
    try:
        yield
    except Exception as error:
        if (pickled := _pickled(error)) is not None:
            raise UserError(
                f"the weights of {reference} hold more than tensors, and robustgen runs no pickled code",
                got=str(pickled).partition("\n")[0],
                remedy="if you trust the file, load it yourself and save its state_dict alone",
            ) from pickled
        remedy = f"check the network; without one, {without_network}" if isinstance(error, OSError) else None
        got = f"{type(error).__name__}: {error}"
        raise UserError(f"{reference} could not be loaded", got=got, remedy=remedy) from error
    finally:
        os.environ.pop(TENSORS_ONLY)
        if before is not None:
            os.environ[TENSORS_ONLY] = before


def _pickled(error: BaseException | None) -> pickle.UnpicklingError | None:
    """The UnpicklingError by which torch refused a pickle, if it caused ``error`` (timm wraps it)."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    # Not errors.unknown_name: that one lists every known name, and timm knows over a thousand.
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return UserError(
        f"there is no {kind} named {name!r}",
        expected=f"one of {len(known)} names, such as {', '.join(near or known[:3])}",
        got=name,
    )
