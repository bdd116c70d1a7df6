"""``robustgen verify DIR --add FILE``: adds adversarial pictures made elsewhere to a run.

They become an evaluation of the run, which counts in its worst case like the run's own attacks. The clean
picture is used for samples that the file does not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.chunks import unfinished
from robustgen.classifiers.base import Classifier
from robustgen.data import Dataset
from robustgen.data.npz import read_npz
from robustgen.draws import Draws
from robustgen.errors import UserError, describe_error
from robustgen.evaluation import Evaluation
from robustgen.perturb import Attack, Perturbed
from robustgen.pilot import Kernels
from robustgen.registry import slug
from robustgen.reload import reload_run
from robustgen.store import RunStore, run_folders
from robustgen.threat import ThreatModel
from robustgen.types import ADDED
from robustgen.worker import Worker

REMEDY = "write the file again, as with numpy.savez(FILE, images=..., sample_ids=...)"


class Pictures(NamedTuple):
    """A file's content: ``images`` (n, channels, height, width) in [0, 1] of the samples ``ids`` (n,)."""

    name: str
    sha256: str
    images: Tensor
    ids: Tensor


class Added(Attack):
    """An attack that returns the pictures of a file; the clean picture for samples that the file lacks."""

    def __init__(self, threat: ThreatModel, pictures: Pictures) -> None:
        super().__init__(threat)
        self.name = f"{ADDED}-{slug(Path(pictures.name).stem)}-{pictures.sha256[:8]}"
        self.reference = f"{pictures.name}, sha256 {pictures.sha256}"
        self.places = {int(i): place for place, i in enumerate(pictures.ids)}
        self.images = pictures.images

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        found = x.clone()
        for row, i in enumerate(draws.sample_ids.tolist()):
            if i in self.places:
                found[row] = self.images[self.places[i]]
        return Perturbed(found)


def add(folder: Path, file: Path, model: str | None = None, *, code: Collection[Path] = ()) -> list[str]:
    """Add a file's pictures to a run of the report in ``folder``: an evaluation for each norm and eps of its
    attacks.

    ``model``: the run's model, needed if the report has several; ``code``: see ``reload_run``. Returns the
    names of the evaluations. Adding the same file again changes nothing. Raises UserError if the file does
    not fit the run.
    """
    store = _run(folder, model)
    batched, dataset = reload_run(store, code=code)
    pictures = read(file, dataset)
    spec = store.spec
    threats = {(e["norm"], e["eps"]) for e in spec["evaluations"] if e["kind"] == "attack"}
    if not threats:
        raise UserError(
            "this run has no attack, and so no budget that pictures could keep to", where=store.path,
            remedy="run a protocol with attacks first",
        )  # fmt: skip
    evaluations = [_evaluation(ThreatModel(*threat), pictures, dataset) for threat in sorted(threats)]
    known = {evaluation["name"] for evaluation in spec["evaluations"]}
    new = [e.describe() for e in evaluations if e.name not in known]
    if new:
        store = RunStore.open(
            store.path, spec | {"evaluations": spec["evaluations"] + new}, store.environment
        )
    root = store.environment.get("data_root")
    worker = Worker(
        batched.model, evaluations, source=spec["data"]["source"], seed=spec["protocol"]["seed"],
        kernels=Kernels(spec["kernels"]["batch"]), root=Path(root) if root else None,
        stochastic=spec["model"]["stochastic"],
    )  # fmt: skip
    clean = store.rows("clean")
    n = None if clean is None else 1 + max(clean["sample_id"].to_pylist())
    finished = {evaluation.name: store.finished(evaluation.name) for evaluation in evaluations}
    for chunk in unfinished(evaluations, finished, spec["protocol"]["chunk"], n):
        store.write(chunk, **worker(chunk)._asdict())
    return [evaluation.name for evaluation in evaluations]


def outside_budget(folder: Path, evaluation: str, model: str | None = None) -> int:
    """How many of the pictures of an evaluation that ``add`` named were projected onto its budget."""
    rows = _run(folder, model).rows(evaluation)
    return 0 if rows is None else rows["within_budget"].to_pylist().count(False)


def _run(folder: Path, model: str | None) -> RunStore:
    stores = [RunStore.read(path) for path in run_folders(folder)]
    fitting = [store for store in stores if model in (None, store.model)]
    if len(fitting) != 1:
        raise UserError(
            "pictures are added to the run of one model", where=folder,
            expected=f"--model, one of: {', '.join(s.model for s in stores) or 'no run is here'}",
            got=model or "none named",
        )  # fmt: skip
    return fitting[0]


def _evaluation(threat: ThreatModel, pictures: Pictures, dataset: Dataset) -> Evaluation:
    attack = Added(threat, pictures)
    detail = {
        "attack": attack.name, "reference": attack.reference, "norm": threat.norm, "eps": threat.eps,
        "cascade": [], "added": {"file": pictures.name, "sha256": pictures.sha256, "n": len(pictures.ids)},
    }  # fmt: skip
    name = f"{attack.name}-{threat.slug}"
    return Evaluation(name, "attack", dataset.name, "test", len(dataset), detail, perturbation=attack)


def read(file: Path, dataset: Dataset) -> Pictures:
    """Read a file of pictures: .npz or .safetensors with ``images`` (n, channels, height, width), float in
    [0, 1] or uint8, and ``sample_ids`` (n,), their positions in the test split (by default 0 to n - 1).

    No code in it is run. Raises UserError if it does not fit the data.
    """
    content = _arrays(file)
    expected = f"images of shape (n, {', '.join(map(str, dataset.shape))}) in [0, 1], sample_ids (n,)"

    def wrong(got: object) -> UserError:
        return UserError(
            "these pictures do not fit the data of the run",
            where=file,
            expected=expected,
            got=got,
            remedy=REMEDY,
        )

    if "images" not in content:
        raise wrong(f"no 'images', but {', '.join(content) or 'nothing'}")
    given = content["images"]
    numbers = content["sample_ids"] if "sample_ids" in content else np.arange(len(given) if given.ndim else 0)
    if given.dtype.kind not in "uf" or numbers.dtype.kind not in "iu":
        raise wrong(f"images {given.dtype} {given.shape}, sample_ids {numbers.dtype} {numbers.shape}")
    images = torch.as_tensor(np.ascontiguousarray(given, given.dtype.newbyteorder("=")))  # no other order
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    ids = torch.as_tensor(numbers.astype(np.int64))
    if tuple(images.shape[1:]) != dataset.shape or ids.shape != images.shape[:1] or not len(ids):
        raise wrong(f"images {tuple(images.shape)}, sample_ids {tuple(ids.shape)}")
    if not bool(((images >= -1e-6) & (images <= 1 + 1e-6)).all()):  # NaN is refused too
        raise wrong("pixels outside [0, 1], or NaN")
    if int(ids.min()) < 0 or int(ids.max()) >= len(dataset) or len(ids.unique()) != len(ids):
        raise wrong(f"sample_ids from {int(ids.min())} to {int(ids.max())}, some outside the split or twice")
    return Pictures(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), images.clamp(0, 1), ids)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; no pickle is read."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(file)
        return read_npz(file)
    except Exception as error:  # the file may hold anything
        raise UserError(
            "cannot read this file of pictures", where=file,
            expected="an .npz or .safetensors file with images and sample_ids, without pickled objects",
            got=describe_error(error), remedy=REMEDY,
        ) from None  # fmt: skip
