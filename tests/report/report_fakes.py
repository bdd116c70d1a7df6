"""Runs made up from random numbers and written through RunStore, as the engine writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robustgen.store import Chunk, RunStore, row_schema

CASCADE = ["apgd-ce", "apgd-t", "fab-t", "square"]
SIGMAS = [0.25, 0.4, 0.56]
SHAPE = (1, 8, 8)


def attack(
    name: str, norm: str, eps: float, cascade: list[str] | None = None, size: int = 60
) -> dict[str, Any]:
    return {
        "name": f"{name}-{norm}-{eps:g}", "kind": "attack", "data": "digits", "size": size, "attack": name,
        "norm": norm, "eps": eps, "cascade": cascade or [],
    }  # fmt: skip


def evaluations(size: int = 60) -> list[dict[str, Any]]:
    plain = {"data": "digits", "size": size}
    return [
        {"name": "clean", "kind": "clean", **plain},
        {"name": "calibration", "kind": "calibration", **plain},
        *(attack("pgd", "linf", eps, size=size) for eps in (0.05, 0.1, 0.15, 0.5)),
        attack("autoattack", "linf", 0.15, CASCADE, size),
        *(attack("pgd", "l2", eps, size=size) for eps in (0.5, 1.0)),
        *(
            {"name": f"{kind}-{s}", "kind": "corruption", **plain, "type": kind, "severity": s}
            for kind in ("gaussian_noise", "brightness")
            for s in (1, 3)
        ),
        {"name": "ood-letters", "kind": "ood", "data": "letters", "size": 50, "provenance": "Letters."},
        {"name": "gradients", "kind": "gradients", **plain, "sigmas": SIGMAS},
    ]


def spec(
    model: str, *, classes: int = 10, shape: tuple[int, ...] = SHAPE, size: int = 60, **more: Any
) -> dict[str, Any]:
    return {
        "model": {
            "name": model, "reference": model, "fingerprint": "0123456789abcdef", "family": model.split("-")[0],
            "summary": "A fake.", "num_classes": classes, "input_shape": list(shape), "supports": ["logits"],
            "density": None, "noise": "NoNoise()", "stochastic": False, "parameters": 12345,
        },
        "data": {
            "name": "digits", "source": "digits", "fingerprint": "f00d", "provenance": "Made <up> & fake.",
            "class_names": [str(k) for k in range(classes)], "size": size, "shape": list(shape),
        },
        "protocol": {
            "name": "quick", "version": 1, "summary": "A quick look.", "reference": "", "seed": 0, "chunk": 32,
            "data": {"any": {"eps": {"linf": 0.15, "l2": 1.0}, "foreign": ["letters"], "sigmas": SIGMAS}},
            "evaluations": [],
        },
        "evaluations": evaluations(size), "refused": [], "batch": 32, "precision": "float32",
        "kernels": {"device": "cpu", "threads": 2},
        **more,
    }  # fmt: skip


ENVIRONMENT = {
    "robustgen": "0.1.0",
    "python": "3.11.7",
    "torch": "2.15.0",
    "numpy": "2.4.6",
    "cpu": "a processor",
}


def write_run(
    out: Path, model: str, *, skill: float = 3.0, seed: int = 0, joint: bool = False, **more: Any
) -> RunStore:
    """A run with rows for every evaluation; ``skill`` is the margin of its logits."""
    content = spec(model, **more)
    store = RunStore.open(out / "runs" / model, content, ENVIRONMENT)
    rng = np.random.default_rng(seed)
    size, classes = content["data"]["size"], content["model"]["num_classes"]
    labels = np.random.default_rng(1).integers(classes, size=size)
    clean = logits_for(labels, skill, classes, rng)
    for detail in content["evaluations"]:
        _write(store, detail, labels, clean, skill, joint, rng)
    return store


def logits_for(labels: np.ndarray, skill: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill
    return logits.astype(np.float32)


def _write(
    store: RunStore, detail: dict, labels: np.ndarray, clean: np.ndarray, skill: float, joint: bool, rng
) -> None:
    classes, n, kind = clean.shape[1], detail["size"], detail["kind"]
    columns: dict[str, Any] = {}
    logits, adversarial = clean, None
    if kind == "ood":
        labels, logits = np.full(n, -1), rng.normal(size=(n, classes))
    elif kind == "corruption":
        logits = logits_for(labels, skill - 0.3 * detail["severity"], classes, rng)
    elif kind == "calibration":
        logits = logits_for(labels, skill, classes, rng)
    elif kind == "attack":
        logits, columns, adversarial = _attacked(detail, labels, clean, skill, store, rng)
    if joint:
        columns["log_prob"] = np.log(np.exp(logits).sum(1)).tolist()
    tables = (
        {"guidance": guidance_table(n, skill, joint, rng, store.spec["data"]["shape"])}
        if kind == "gradients"
        else {}
    )
    rows = make_rows(labels, logits, **columns)
    half = n // 2  # two chunks, the later first
    for start, stop in ((half, n), (0, half)):
        part = slice(start, stop)
        keep = {
            k: t.filter(
                pa.compute.and_(
                    pa.compute.greater_equal(t["sample_id"], start), pa.compute.less(t["sample_id"], stop)
                )
            )
            for k, t in tables.items()
        }
        store.write(
            Chunk(detail["name"], start, stop), rows.slice(start, stop - start), tables=keep,
            adversarial=None if adversarial is None else picture_table(np.arange(n)[part], adversarial[part]),
            seconds=0.5,
        )  # fmt: skip


def _attacked(detail: dict, labels: np.ndarray, clean: np.ndarray, skill: float, store: RunStore, rng):
    n, classes = clean.shape
    eps = detail["eps"] * (1 if detail["norm"] == "linf" else 0.2)
    fooled = logits_for(labels, skill - 40 * eps, classes, rng)
    right = clean.argmax(1) == labels
    logits = np.where(right[:, None], fooled, clean)
    broken = right & (logits.argmax(1) != labels)
    stages = rng.choice(detail["cascade"] or [detail["attack"]], size=n)
    columns = {
        "broken_by": [str(s) if b else None for s, b in zip(stages, broken)] if detail["cascade"] else None,
        "within_budget": [True] * n, "distance": [detail["eps"]] * n,
        "seeded_by": ["chunk" if detail["cascade"] else "sample"] * n,
    }  # fmt: skip
    shape = store.spec["data"]["shape"]
    return logits, columns, rng.random((n, int(np.prod(shape)))).astype(np.float32)


def make_rows(labels: np.ndarray, logits: np.ndarray, **columns: Any) -> pa.Table:
    n = len(labels)
    content = {
        "sample_id": list(range(n)), "label": labels.tolist(), "logits": np.asarray(logits, np.float32).tolist(),
        "draws": [1] * n, "draws_correct": (logits.argmax(1) == labels).astype(int).tolist(),
        "forwards": [3.0] * n, "backwards": [2.0] * n, "seeded_by": ["sample"] * n,
        **{k: v for k, v in columns.items() if v is not None},
    }  # fmt: skip
    schema = row_schema(logits.shape[1])
    return pa.table([pa.array(content.get(f.name, [None] * n), f.type) for f in schema], schema=schema)


def guidance_table(n: int, skill: float, joint: bool, rng, shape) -> pa.Table:
    dims = int(np.prod(shape))
    parts = []
    for sigma in SIGMAS:
        reference = rng.gamma(8, sigma**2, n)
        pictures = {
            c: [rng.random(dims).tolist() if i < 4 else None for i in range(n)]
            for c in ("noisy", "reference", "guidance")
        }
        parts.append({
            "sample_id": list(range(n)), "sigma": [sigma] * n, "reference_error": reference.tolist(),
            "guided_error": (reference * rng.normal(1.1 - 0.05 * skill, 0.1, n)).tolist(),
            "model_error": (reference * 1.1).tolist() if joint else [None] * n,
            "wiener_error": (reference * rng.normal(1.4, 0.1, n)).tolist(), "guidance_norm": [0.3] * n,
            "dims": [dims] * n, **pictures,
        })  # fmt: skip
    double, picture = pa.float64(), pa.list_(pa.float32())
    schema = pa.schema([("sample_id", pa.int64()), ("sigma", double), ("reference_error", double), ("guided_error", double),
        ("model_error", double), ("wiener_error", double), ("guidance_norm", double), ("dims", pa.int64()),
        ("noisy", picture), ("reference", picture), ("guidance", picture)])  # fmt: skip
    return pa.concat_tables([pa.table(part, schema=schema) for part in parts])


def picture_table(ids: np.ndarray, pictures: np.ndarray) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pictures.ravel(), pa.float32()), pictures.shape[1])
    return pa.table({"sample_id": pa.array(ids), "image": flat})
