"""How far a classifier can be trusted when its input is attacked, corrupted or foreign.

The public API; nothing heavy is imported before one of these is called.

>>> import robustgen
>>> model = robustgen.load_model("softmax-digits")
>>> robustgen.load_data("digits").shape
(1, 8, 8)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from robustgen.attacks.dropin import AutoAttack
    from robustgen.classifiers.base import Classifier
    from robustgen.config import Protocol
    from robustgen.data import Dataset
    from robustgen.report.result import Report
    from robustgen.types import Split

__version__ = "0.1.0"
__all__ = ["AutoAttack", "evaluate", "load_data", "load_model", "load_protocol", "render"]


def __getattr__(name: str) -> type[AutoAttack]:
    """``robustgen.AutoAttack``, imported when it is asked for."""
    if name == "AutoAttack":
        from robustgen.attacks.dropin import AutoAttack

        return AutoAttack
    raise AttributeError(f"module 'robustgen' has no attribute {name!r}")


def load_model(reference: str, data: str = "") -> Classifier:
    """A classifier, ready to use: a zoo name, FILE.py:NAME, an entry point, or LIBRARY:NAME.

    ``data`` names the data set that a custom or outside model is for (digits unless said); a zoo model's
    card says it. Raises UserError where the reference means no model or several, and where it does not fit
    that data.
    """
    from robustgen import classifiers, registry
    from robustgen import data as datasets

    ref = registry.resolve_one(reference)
    if isinstance(ref, registry.ZooModel):
        data = data or registry.load_card(ref.folder).data
    dataset = datasets.load(data or "digits")
    return classifiers.load_model(ref, class_names=dataset.class_names, input_shape=dataset.shape)


def load_data(name: str, split: Split = "test", root: Path | str | None = None) -> Dataset:
    """A split (train, calibration or test) of a data set, by its name or path.

    ``images`` float32 (n, channels, height, width) in [0, 1], ``labels`` int64 (n,). ``root``: where data
    sets lie (ROBUSTGEN_DATA, or the user's cache folder, unless said). Raises UserError where there is no
    such set or split, or its files cannot be had.
    """
    from robustgen import data

    return data.load(name, split, root=root)


def load_protocol(name: str) -> Protocol:
    """A protocol by name or by the path of its YAML file; UserError where there is none, or it is wrong."""
    from robustgen import registry

    return registry.load_protocol(name)


def evaluate(
    models: str | nn.Module | Iterable[str | nn.Module] | Mapping[str, nn.Module],
    *,
    data: str = "digits",
    protocol: str = "quick",
    out: Path | str = "out",
    n: int | None = None,
    root: Path | str | None = None,
) -> Report:
    """Run one or several models through a protocol, as ``robustgen report`` does; finished chunks are kept.

    A model is what the command line takes, or a ``torch.nn.Module`` that maps pictures in [0, 1] to logits:
    it is copied, and goes by the name of its class, or by its key where ``models`` is a mapping. ``n``: the
    first n samples of every evaluation (as the protocol says unless said). What fails of one model is in
    the report's ``failures``; UserError where nothing can be run at all. The returned report is a data
    frame by ``.to_frame()``, a page by ``.page()``, and a table in a notebook.
    """
    from robustgen import engine, registry
    from robustgen.errors import UserError
    from robustgen.places import as_path
    from robustgen.report.result import Report
    from robustgen.report.summary import summarise

    if n is not None and (not isinstance(n, Integral) or n < 1):
        raise UserError(
            "so many pictures make no report", where="n", expected="1 or more, or None", got=repr(n)
        )
    refs = registry.model_refs(models)
    chosen = registry.load_protocol(protocol)
    folder = as_path(out)
    outcome = engine.evaluate(refs, chosen, data, folder, n=n, root=Path(root) if root else None)
    content = summarise(folder, outcome.runs, n or chosen.n, "robustgen.evaluate", outcome.failures)
    return Report(folder, content, outcome.failures)


def render(out: Path | str) -> Path:
    """Write OUT/index.html from what is stored under OUT, and return its path; UserError where none is."""
    from robustgen.places import as_path
    from robustgen.report.render import render as write_page

    return write_page(as_path(out))
