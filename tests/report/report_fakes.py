"""Runs made up from random numbers and written through RunStore, as the engine writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robustgen.gradients import schema as guidance_schema
from robustgen.rowtable import row_schema
from robustgen.store import Chunk, RunStore

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
        *fixed(size),
        *(detected(score, size) for score in ("log_prob", "confidence")),
        {"name": "gradients", "kind": "gradients", **plain, "sigmas": SIGMAS},
    ]


def fixed(size: int) -> list[dict[str, Any]]:
    """The label's odds and the energy under a fixed number of steps, the latter on both sides."""
    common = {"kind": "fixed", "norm": "linf", "eps": 0.15, "steps": 20}
    own = {**common, "data": "digits", "size": size, "of": "clean"}
    return [
        *({"name": f"fixed-{o}-linf-0.15", "objective": o, **own} for o in ("label", "energy")),
        {**common, "name": "ood-letters-fixed-energy-linf-0.15", "objective": "energy", "of": "ood-letters",
         "data": "letters", "size": 50},
    ]  # fmt: skip


def detected(score: str, size: int) -> dict[str, Any]:
    """An attack that knows of a detector by a score."""
    return {
        "name": f"detected-{score.replace('_', '-')}-linf-0.15", "kind": "detected", "data": "digits",
        "size": size, "attack": "detector-aware", "norm": "linf", "eps": 0.15, "score": score,
        "rejection": 0.05, "cascade": ["evade-0.5", "evade-2"],
    }  # fmt: skip


def spec(
    model: str,
    *,
    classes: int = 10,
    shape: tuple[int, ...] = SHAPE,
    size: int = 60,
    summary: str = "A fake.",
    density: str | None = None,
    stochastic: bool = False,
    **more: Any,
) -> dict[str, Any]:
    return {
        "identity": {"model": "0123456789abcdef", "data": "f00d", "name": model},
        "model": {
            "name": model, "fingerprint": "0123456789abcdef", "family": model.split("-")[0],
            "summary": summary, "num_classes": classes, "input_shape": list(shape),
            "supports": ["log_prob", "logits"] if density else ["logits"],
            "density": density, "noise": "NoNoise()", "stochastic": stochastic, "parameters": 12345,
        },
        "data": {
            "name": "digits", "source": "digits", "fingerprint": "f00d", "provenance": "Made <up> & fake.",
            "class_names": [str(k) for k in range(classes)], "size": size, "shape": list(shape),
        },
        "protocol": {
            "name": "quick", "version": 1, "summary": "A quick look.", "seed": 0, "chunk": 32,
            "data": {"any": {"eps": {"linf": 0.15, "l2": 1.0}, "foreign": ["letters"], "sigmas": SIGMAS}},
            "evaluations": [],
        },
        "evaluations": evaluations(size), "refused": [],
        "kernels": {"device": "cpu", "batch": 32, "precision": "float32", "threads": 2},
        **more,
    }  # fmt: skip


ENVIRONMENT = {
    "robustgen": "0.1.0",
    "python": "3.11.7",
    "torch": "2.15.0",
    "numpy": "2.4.6",
    "cpu": "a processor",
}


@dataclass
class Fake:
    """A made-up model: ``skill`` is the margin of its logits; a ``joint`` one has log p(x) and a denoiser."""

    store: RunStore
    labels: np.ndarray
    skill: float
    joint: bool
    rng: np.random.Generator

    def logits(self, margin: float) -> np.ndarray:
        logits = self.rng.normal(size=(len(self.labels), self.store.spec["model"]["num_classes"]))
        logits[np.arange(len(self.labels)), self.labels] += margin
        return logits.astype(np.float32)


def write_run(
    out: Path, model: str, *, folder: str = "", skill: float = 3.0, seed: int = 0, joint: bool = False,
    **more: Any,
) -> RunStore:  # fmt: skip
    """A run with rows for every evaluation, each in two chunks, the later one written first."""
    content = spec(model, **more)
    store = RunStore.open(out / "runs" / (folder or model), content, ENVIRONMENT)
    labels = np.random.default_rng(1).integers(content["model"]["num_classes"], size=content["data"]["size"])
    fake = Fake(store, labels, skill, joint, np.random.default_rng(seed))
    clean = fake.logits(skill)
    for detail in content["evaluations"]:
        rows, tables, pictures = evaluate(fake, detail, clean)
        half, size = len(rows) // 2, len(rows)
        for start, stop in ((half, size), (0, half)):
            store.write(
                Chunk(detail["name"], start, stop), part(rows, start, stop),
                tables={name: part(table, start, stop) for name, table in tables.items()},
                adversarial=None if pictures is None else part(pictures, start, stop), seconds=0.5,
            )  # fmt: skip
    return store


def part(table: pa.Table, start: int, stop: int) -> pa.Table:
    ids = np.asarray(table["sample_id"])
    return table.filter(pa.array((ids >= start) & (ids < stop)))


def evaluate(
    fake: Fake, detail: dict[str, Any], clean: np.ndarray
) -> tuple[pa.Table, dict[str, pa.Table], pa.Table | None]:
    """Rows, tables beside them and adversarial pictures of one evaluation."""
    labels, logits, n, kind = fake.labels, clean, detail["size"], detail["kind"]
    columns: dict[str, Any] = {}
    tables: dict[str, pa.Table] = {}
    pictures = None
    dims = int(np.prod(fake.store.spec["data"]["shape"]))
    if kind == "ood" or detail.get("of") == "ood-letters":
        labels, logits = np.full(n, -1), fake.rng.normal(size=(n, clean.shape[1]))
    elif kind == "fixed":
        logits = fake.logits(fake.skill - 2)
    elif kind == "corruption":
        logits = fake.logits(fake.skill - 0.3 * detail["severity"])
    elif kind == "calibration":
        logits = fake.logits(fake.skill)
    elif kind in ("attack", "detected"):
        logits, columns = attacked(fake, detail, clean)
        if kind == "detected" and (fake.joint or detail["score"] == "confidence"):
            columns["scores"] = [[("judged", j), ("threshold", 0.3)] for j in fake.rng.random(n)]
        pictures = picture_table(fake.rng.random((n, dims)).astype(np.float32))
    elif kind == "gradients":
        tables["guidance"] = guidance_table(fake, n, dims)
    if fake.store.spec["model"]["stochastic"]:
        columns["draws"] = [32] * n
        share = np.where(logits.argmax(1) == labels, fake.rng.beta(5, 0.5, n), fake.rng.beta(0.5, 2, n))
        columns["draws_correct"] = fake.rng.binomial(32, share).tolist()
    if kind in ("clean", "ood"):
        bits = fake.rng.integers(500, 900, n).astype(float)
        columns["scores"] = [[("complexity", b), ("chroma", -b / 1000)] for b in bits]
    if fake.joint:
        columns["log_prob"] = np.log(np.exp(logits).sum(1)).tolist()
    return make_rows(labels, logits, **columns), tables, pictures


def attacked(fake: Fake, detail: dict[str, Any], clean: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    n, cascade = len(clean), detail["cascade"]
    eps = detail["eps"] * (1 if detail["norm"] == "linf" else 0.2)
    right = clean.argmax(1) == fake.labels
    logits = np.where(right[:, None], fake.logits(fake.skill - 40 * eps), clean)
    columns = {"within_budget": [True] * n, "distance": [detail["eps"]] * n}
    if cascade:
        broken = right & (logits.argmax(1) != fake.labels)
        stages = fake.rng.choice(cascade, size=n).astype(object)
        columns |= {"broken_by": np.where(broken, stages, None).tolist(), "seeded_by": ["chunk"] * n}
    return logits, columns


def make_rows(labels: np.ndarray, logits: np.ndarray, **columns: Any) -> pa.Table:
    n = len(labels)
    content = {
        "sample_id": list(range(n)), "label": labels.tolist(), "logits": np.float32(logits).tolist(),
        "draws": [1] * n, "draws_correct": (logits.argmax(1) == labels).astype(int).tolist(),
        "forwards": [3.0] * n, "backwards": [2.0] * n, "seeded_by": ["sample"] * n, **columns,
    }  # fmt: skip
    schema = row_schema(logits.shape[1])
    return pa.table([pa.array(content.get(f.name, [None] * n), f.type) for f in schema], schema=schema)


def guidance_table(fake: Fake, n: int, dims: int) -> pa.Table:
    def one(sigma: float) -> pa.Table:
        reference = fake.rng.gamma(8, sigma**2, n)
        errors = {
            "reference_error": reference,
            "guided_error": reference * fake.rng.normal(1.1 - 0.05 * fake.skill, 0.1, n),
            "model_error": reference * 1.1 if fake.joint else None,
            "wiener_error": reference * fake.rng.normal(1.4, 0.1, n),
            "guidance_norm": np.full(n, 0.3),
        }
        stored = {
            name: [fake.rng.random(dims).tolist() if i < 4 else None for i in range(n)]
            for name in ("noisy", "reference", "guidance")
        }
        plain = {"sample_id": np.arange(n), "sigma": np.full(n, sigma), "dims": np.full(n, dims)}
        columns = {k: [None] * n if v is None else v for k, v in (errors | stored | plain).items()}
        return pa.table(columns, schema=guidance_schema())

    return pa.concat_tables([one(sigma) for sigma in SIGMAS])


def picture_table(pictures: np.ndarray) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pictures.ravel()), pictures.shape[1])
    return pa.table({"sample_id": np.arange(len(pictures)), "image": flat})


def large_report(out: Path, models: int = 10) -> Path:
    """The page of a report of ten models and a hundred evaluations each, on CIFAR-10's shape and 19 types."""
    from robustgen.report.render import render
    from robustgen.report.summary import summarise

    plain = {"data": "digits", "size": 40}
    types = [f"type{i}" for i in range(18)]
    many = [e for e in evaluations(40) if e["kind"] != "corruption"]
    many += [
        {"name": f"{kind}-{s}", "kind": "corruption", **plain, "type": kind, "severity": s}
        for kind in types
        for s in range(1, 6)
    ]
    many = [e | {"size": min(e["size"], 40)} for e in many][:100]
    runs = [
        write_run(out, f"model-{i}", skill=1.0 + i / 2, seed=i, joint=i % 2 == 0, size=40, evaluations=many)
        for i in range(models)
    ]
    summarise(out, runs, None, "robustgen report")
    return render(out)
