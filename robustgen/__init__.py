"""How far a classifier can be trusted when its input is attacked, corrupted or foreign.

The public API. Nothing heavy is imported before it is needed.

>>> import robustgen
>>> model = robustgen.load_model("softmax-digits")
>>> robustgen.load_data("digits").shape
(1, 8, 8)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustgen.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from robustgen.attacks.dropin import AutoAttack
    from robustgen.classifiers.base import Classifier
    from robustgen.config import Protocol
    from robustgen.data import Dataset
    from robustgen.report.result import Report
    from robustgen.types import Split

__version__ = "0.1.0"
__all__ = [
    "AutoAttack", "Report", "UserError", "evaluate", "load_data", "load_model", "load_protocol", "render",
]  # fmt: skip

_LAZY = {"AutoAttack": "robustgen.attacks.dropin", "Report": "robustgen.report.result"}


def __getattr__(name: str) -> Any:
    """Import ``AutoAttack`` and ``Report`` when they are first used."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robustgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_model(reference: str, data: str = "") -> Classifier:
    """Load a classifier by its name, ready to use.

    Args:
        reference: as on the command line: a zoo name, a model's folder, FILE.py:NAME, an entry point, or
            LIBRARY:NAME.
        data: the data set that the model is for. Needed for models that are not of the zoo, whose card says
            it; digits by default.

    Raises:
        UserError: if the reference matches no model or several, or the model does not fit the data.
    """
    from robustgen import classifiers, registry
    from robustgen import data as datasets

    ref = registry.resolve_one(reference)
    if isinstance(ref, registry.ZooModel):
        data = data or registry.load_card(ref.folder).data
    dataset = datasets.load(data or "digits")
    return classifiers.load_model(ref, class_names=dataset.class_names, input_shape=dataset.shape)


def load_data(name: str, split: Split = "test", root: Path | str | None = None) -> Dataset:
    """Load a split of a data set: ``images`` float32 (n, channels, height, width) in [0, 1] and ``labels``
    int64 (n,).

    Args:
        name: as on the command line: a name, imagefolder:PATH, FILE.npz or FILE.parquet.
        split: train, calibration or test.
        root: the folder of the data sets; by default ROBUSTGEN_DATA, else the user's cache folder.

    Raises:
        UserError: if there is no such data set or split, or its files cannot be read or downloaded.
    """
    from robustgen import data

    return data.load(name, split, root=root)


def load_protocol(name: str) -> Protocol:
    """Load a protocol by its name or the path of its YAML file.

    Raises UserError if there is none, or it is not valid.
    """
    from robustgen import registry

    return registry.load_protocol(name)


def evaluate(
    models: str | Path | nn.Module | Iterable[str | Path | nn.Module] | Mapping[str, nn.Module],
    *,
    data: str | Path = "digits",
    protocol: str | Path | Protocol = "quick",
    out: Path | str = "out",
    n: int | None = None,
    root: Path | str | None = None,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    time_limit: float | None = None,
) -> Report:
    """Run one or several models through a protocol, as ``robustgen report`` does.

    What is finished is stored under ``out`` and not computed again by the next call. The report holds the
    numbers (``.to_frame()``), the doubts about them (``.flags()``) and the page (``.page()``), and shows
    itself as a table in a notebook.

    Args:
        models: names as on the command line, and live ``torch.nn.Module`` objects that map pictures in
            [0, 1] to logits. A module is copied, and named after its class, or by its key in a mapping.
        data: a data set's name, imagefolder:PATH, FILE.npz or FILE.parquet.
        protocol: a protocol's name, the path of its YAML file, or what ``load_protocol`` returns.
        out: the folder of the report, or s3://BUCKET/FOLDER.
        n: only the first n samples of every evaluation; by default as many as the protocol says.
        root: the folder of the data sets; by default ROBUSTGEN_DATA, else the user's cache folder.
        batch: pictures a call of a model; by default the protocol's chunk size, at most 64.
        device: cpu, cuda, or auto: a GPU if there is one.
        precision: of attacks' gradients: float32, bf16, or auto: bf16 if it is clearly faster.
        time_limit: seconds that a chunk of samples may take.

    Raises:
        UserError: if no model could be run. If only some fail, ``failures`` of the report says why.
    """
    from robustgen import engine, registry
    from robustgen.config import Protocol
    from robustgen.places import as_path
    from robustgen.report.result import Report
    from robustgen.report.summary import summarise

    for name, value in {"n": n, "batch": batch}.items():
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise UserError(
                f"{name} must be a positive integer",
                where=name,
                expected="1 or more, or None",
                got=repr(value),
            )
    if not isinstance(data, str | Path):  # a run's data are loaded again by their name
        raise UserError(
            "data is given by its name, as on the command line", where="data", expected="a name or a path",
            got=type(data).__name__, remedy=f"data={getattr(data, 'source', '') or 'mine.npz'!r}",
        )  # fmt: skip
    refs = registry.model_refs(models)
    chosen = protocol if isinstance(protocol, Protocol) else registry.load_protocol(str(protocol))
    folder = as_path(out)
    outcome = engine.evaluate(
        refs, chosen, str(data), folder, n=n, root=Path(root) if root else None, batch=batch, device=device,
        precision=precision, limit=time_limit,
    )  # fmt: skip
    content = summarise(folder, outcome.runs, n or chosen.n, "robustgen.evaluate", outcome.failures)
    return Report(folder, content, outcome.failures)


def render(out: Path | str) -> Path:
    """Write OUT/index.html again from what is stored under OUT, and return its path.

    Raises UserError if there is no report in OUT.
    """
    from robustgen.places import as_path
    from robustgen.report.render import render as write_page

    return write_page(as_path(out))
