"""Example pictures: what an attack changed, and what a class gradient adds to the reference denoiser."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robustgen.errors import UserError
from robustgen.metrics.rows import Rows, Run
from robustgen.report.columns import headline_eps
from robustgen.report.content import DataEntry, Summary
from robustgen.report.formats import sigma_text
from robustgen.store import RunStore
from robustgen.threat import worst_name

Array = np.ndarray
SAMPLES = 3  # that a gallery shows
SEARCHED = 32  # stored pictures among which they are chosen


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its text alternative and its caption."""

    uri: str
    alt: str
    caption: str
    emphasis: bool = False


@dataclass(frozen=True)
class Gallery:
    """A table of pictures: a first row that all models share, then a row for each model; ``heads`` are the
    titles of its columns. A cell holds the pictures that belong together, none where it is empty."""

    title: str
    intro: str
    heads: list[str]
    rows: list[tuple[str, list[list[Picture]]]]


def png(picture: Array, low: float = 0.0, high: float = 1.0) -> str:
    """A picture (channels, height, width) as a PNG data URI; ``low`` is black, ``high`` white."""
    from PIL import Image

    scaled = np.clip((picture - low) / (high - low), 0, 1)
    levels = np.round(255 * scaled).astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else levels[:3].transpose(1, 2, 0))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def signed_png(picture: Array, scale: float) -> str:
    """A difference of pictures: grey is 0, white ``scale`` and black -``scale``."""
    return png(picture, -scale, scale)


def clean_pictures(data: DataEntry, root: str | None = None) -> Array:
    """The test pictures (n, channels, height, width) of the runs; UserError where they are not available.

    ``root``: the data root of the run, None for the default.
    """
    from robustgen.data import load

    dataset = load(data.get("source") or data["name"], root=root)
    if dataset.fingerprint != data["fingerprint"]:
        raise UserError(
            "the data on this machine differ from those of the run",
            expected=data["fingerprint"],
            got=dataset.fingerprint,
        )
    return dataset.images.numpy()


def galleries(content: Summary, pairs: list[tuple[RunStore, Run]], clean: Array) -> list[Gallery]:
    """The galleries for which pictures are stored."""
    found = [_attack_gallery(content, pairs, clean), _guidance_gallery(pairs, clean)]
    return [gallery for gallery in found if gallery is not None]


# --- attacks ---------------------------------------------------------------------------------------


def _attack_gallery(content: Summary, pairs: list[tuple[RunStore, Run]], clean: Array) -> Gallery | None:
    """The samples that an attack of the main table turns for the most models: perturbation and result."""
    runs = [run for _, run in pairs]
    detail = _shown_attack(content, runs)
    if detail is None:
        return None
    evaluation, names = detail["name"], content["data"]["class_names"]
    stored = {run.model: _adversarial(store, evaluation) for store, run in pairs}
    samples = _samples(runs, evaluation, [pictures for pictures in stored.values() if pictures])
    if not samples:
        return None
    moved = [np.abs(p[i] - clean[i].ravel()).max() for p in stored.values() for i in samples if i in p]
    scale = float(max(moved)) or 1.0
    rows = [("clean", [[_labelled(runs, clean[i], i, names)] for i in samples])]
    for run in runs:
        found = stored[run.model]
        cells = [_attacked(run, evaluation, i, clean[i], found.get(i), names, scale) for i in samples]
        if any(cells):
            rows.append((run.model, cells))
    intro = (
        f"The stored samples that {evaluation} turns for the most models: the perturbation (grey is 0, white "
        f"and black are ±{scale:.2g}), and the perturbed picture with the predicted class."
    )
    return Gallery("What the attack changed", intro, [f"sample {i}" for i in samples], rows)


def _shown_attack(content: Summary, runs: list[Run]) -> dict[str, Any] | None:
    """A cascade of the main table, else any attack of it, else any attack."""
    wanted = {worst_name(*size) for size in headline_eps(content)}
    found = [evaluation.detail for run in runs for evaluation, _ in run.of_kind("attack")]
    return max(
        found, key=lambda d: (worst_name(d["norm"], d["eps"]) in wanted, bool(d["cascade"])), default=None
    )


def _adversarial(store: RunStore, evaluation: str) -> dict[int, Array]:
    table = store.adversarial(evaluation, SEARCHED)
    if table is None:
        return {}
    return dict(zip(table["sample_id"].to_pylist(), np.asarray(table["image"].to_pylist()), strict=True))


def _samples(runs: list[Run], evaluation: str, stored: list[dict[int, Array]]) -> list[int]:
    """The samples whose pictures all models store and that the attack turns for the most models."""
    if not stored:
        return []
    attacked = [(run, run.evaluations[evaluation].rows) for run in runs if evaluation in run.evaluations]
    turned = Counter(i for run, rows in attacked if rows for i in _turned(run, rows))
    ids = set.intersection(*(set(pictures) for pictures in stored))
    return sorted(sorted(ids, key=lambda i: (-turned[i], i))[:SAMPLES])


def _turned(run: Run, rows: Rows) -> list[int]:
    """Samples that are classified correctly on the clean picture and wrongly under attack."""
    clean = run.first("clean")
    before = set(clean.ids[clean.correct].tolist()) if clean else set()
    return [i for i in rows.ids[~rows.correct].tolist() if i in before]


def _labelled(runs: list[Run], picture: Array, sample: int, names: list[str]) -> Picture:
    several = (rows for run in runs for _, rows in run.of_kind("attack") if sample in rows.ids)
    rows = next(several)
    label = _name(names, int(rows.labels[rows.at(sample)]))
    return Picture(png(picture), f"clean picture of {label}", label)


def _attacked(
    run: Run, evaluation: str, sample: int, clean: Array, found: Array | None, names: list[str], scale: float
) -> list[Picture]:
    rows = run.evaluations[evaluation].rows if evaluation in run.evaluations else None
    if found is None or rows is None or sample not in rows.ids:
        return []
    place = int(rows.at(sample))
    seen, right = _name(names, int(rows.prediction[place])), bool(rows.correct[place])
    picture = found.reshape(clean.shape)
    verdict = f"still {seen}" if right else f"→ {seen}"
    change = "" if np.abs(picture - clean).max() > 1e-6 else "no change"
    against = f"perturbation of sample {sample} against {run.model}"
    return [
        Picture(signed_png(picture - clean, scale), against, change),
        Picture(png(picture), f"adversarial picture, seen as {seen}", verdict, not right),
    ]


def _name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


# --- gradients -------------------------------------------------------------------------------------


def _guidance_gallery(pairs: list[tuple[RunStore, Run]], clean: Array) -> Gallery | None:
    """Some stored samples at the middle noise level, with what each model's class gradient adds."""
    tables = {run.model: _pictures_of(store, run) for store, run in pairs}
    known = [table for table in tables.values() if len(table)]
    if not known:
        return None
    sigmas = sorted(known[0]["sigma"].unique())
    sigma = sigmas[len(sigmas) // 2]
    tables = {model: t[t["sigma"] == sigma].set_index("sample_id") for model, t in tables.items() if len(t)}
    ids = set.intersection(*(set(t.index) for t in tables.values()))
    hardest = next(iter(tables.values()))["reference_error"]  # the same for every model
    samples = sorted(sorted(ids, key=lambda i: -hardest[i])[:SAMPLES])
    if not samples:
        return None
    first, shape = next(iter(tables.values())), clean.shape[1:]
    rows = [("all models", [given(first.loc[i], clean[i]) for i in samples])]
    rows += [(model, [_added(t.loc[i], shape, model) for i in samples]) for model, t in tables.items()]
    intro = (
        f"Noise of {sigma_text(sigma)} was added, and one reference denoiser, the same for all models, "
        "removes it. Each model's class gradient, σ²∇log p(label | noisy picture), is added to its output. "
        "Grey is 0; each gradient is scaled to its own largest pixel, which stands below it. A good class "
        "gradient moves the output towards the clean picture. The samples are the stored ones that the "
        "reference denoises worst."
    )
    return Gallery("What the class gradient adds", intro, [f"sample {i}" for i in samples], rows)


def _pictures_of(store: RunStore, run: Run) -> pd.DataFrame:
    for evaluation, _ in run.tables("gradients"):
        table = store.table(evaluation, "guidance", SEARCHED)
        if table is not None:
            return table.to_pandas().dropna(subset=["noisy", "reference", "guidance"])
    return pd.DataFrame()


def given(row: pd.Series, clean: Array) -> list[Picture]:
    """The pictures that all models share: clean, noisy, and denoised by the reference."""
    noisy, reference = (
        np.asarray(row[c], dtype=np.float64).reshape(clean.shape) for c in ("noisy", "reference")
    )
    return [
        Picture(png(clean), "clean picture", "clean"),
        Picture(png(noisy), "noisy picture", "noisy"),
        Picture(png(reference), "output of the reference denoiser", "reference"),
    ]


def _added(row: pd.Series, shape: tuple[int, ...], model: str) -> list[Picture]:
    guidance, reference = (
        np.asarray(row[c], dtype=np.float64).reshape(shape) for c in ("guidance", "reference")
    )
    scale = float(np.abs(guidance).max()) or 1.0
    gain = 1 - row["guided_error"] / row["reference_error"]
    return [
        Picture(signed_png(guidance, scale), f"class gradient of {model}", f"±{scale:.2g}"),
        Picture(
            png(reference + guidance), f"reference plus gradient of {model}",
            f"sum: error {-100 * gain:+.0f} %".replace("-", "−"), gain < 0,
        ),
    ]  # fmt: skip
