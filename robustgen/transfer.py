"""``robustgen transfer DIR``: shows every model of a report the adversarial pictures of every other model.

Nothing is attacked again. If a picture made for another model breaks a sample on which the model's own
attack found nothing, then the own attack is weak: misled, perhaps, by the model's masked gradients.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from robustgen.disk import atomic
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.metrics.intervals import wilson
from robustgen.metrics.rows import Rows, is_attack, to_rows
from robustgen.metrics.verdicts import majority, surely_fell
from robustgen.reload import reload_run
from robustgen.report.summary import gather
from robustgen.store import RunStore
from robustgen.types import ADDED, Flag
from robustgen.verdict import fresh_verdict

Array = np.ndarray
MAX_BEATEN = 0.01
"""Share of the samples left by a model's own attack that other models' pictures may break without a flag."""


@dataclass(frozen=True)
class Pair:
    """The adversarial pictures that one evaluation made for ``source``, shown to ``target``; 95 % interval.

    ``n``: samples that both have, that the target classifies correctly without an attack, and that the
    source's attack changed; ``right``: how many of them the target still classifies correctly, ``share`` of
    n; ``left``: how many samples the target's own attack left standing; ``beaten``: how many of these the
    source's pictures break. If source and target are the same, unchanged samples count too.
    """

    source: str
    target: str
    evaluation: str
    n: int
    right: int
    share: float
    ci_low: float
    ci_high: float
    left: int
    beaten: int


class TransferResult(NamedTuple):
    """All pairs, and the flags of attacks that another model's pictures beat."""

    pairs: list[Pair]
    flags: list[Flag]


class _Attacked(NamedTuple):
    """The rows of one attack on one model and, in the same order, its pictures (n, ...)."""

    rows: Rows
    images: Array


def transfer(out: Path, console: Console | None = None, *, code: Collection[Path] = ()) -> TransferResult:
    """Show every model of the report in ``out`` every other's pictures; writes transfer.csv, prints tables.

    The models are those in summary.json. Left out are random noise, which is the same picture for every
    model, added pictures and those of ``kind: transfer``, which no model's own attack made. Raises UserError
    if there is no report of at least two models.
    """
    stores = gather([out], out).runs
    _check(out, stores)
    stored = {store.model: _attacked(store) for store in stores}
    pairs: list[Pair] = []
    for store in stores:
        pairs += _onto(store, stored, code)
    order = list(dict.fromkeys(name for found in stored.values() for name in found))
    pairs.sort(key=lambda pair: order.index(pair.evaluation))
    flags = list(_flags(pairs))
    _write(out / "transfer.csv", pairs)
    _print(console or Console(highlight=False), pairs, flags)
    return TransferResult(pairs, flags)


def _check(out: Path, stores: list[RunStore]) -> None:
    if len(stores) < 2:
        raise UserError(
            "a transfer needs two models", where=out, expected="the --out of 'robustgen report' with several",
            got=", ".join(store.model for store in stores),
        )  # fmt: skip


def _attacked(store: RunStore) -> dict[str, _Attacked]:
    """The stored pictures of a run's attacks, by evaluation; only of attacks that search."""
    shape = store.spec["data"]["shape"]
    found = {}
    for detail in store.spec["evaluations"]:
        if detail["kind"] != "attack" or is_attack(detail, "noise", "transfer", ADDED):
            continue
        rows, pictures = store.rows(detail["name"]), store.adversarial(detail["name"])
        if rows is None or pictures is None or not rows["sample_id"].equals(pictures["sample_id"]):
            continue
        images = np.stack(pictures["image"].to_numpy(zero_copy_only=False)).astype(np.float32)
        found[detail["name"]] = _Attacked(to_rows(rows), images.reshape(-1, *shape))
    return found


def _onto(store: RunStore, stored: dict[str, dict[str, _Attacked]], code: Collection[Path]) -> Iterator[Pair]:
    """Show every source's pictures to one model."""
    table = store.rows("clean")
    if table is None:
        raise UserError("there are no clean rows", where=store.path, remedy="run the report with them")
    clean = to_rows(table)
    model, dataset = reload_run(store, code=code)
    for evaluation, own in stored[store.model].items():
        for source, theirs in stored.items():
            if evaluation not in theirs:
                continue
            foreign = theirs[evaluation]
            ids = np.intersect1d(np.intersect1d(own.rows.ids, foreign.rows.ids), clean.ids[clean.correct])
            if not len(ids):
                continue
            still = own.rows.of(ids).correct
            if source == store.model:
                yield _pair(source, store.model, evaluation, still, still, 0)
                continue
            images = foreign.images[foreign.rows.at(ids)]
            # an attack that found nothing left the clean picture, which says nothing here
            moved = (images != dataset.images[torch.from_numpy(ids)].numpy()).any((1, 2, 3))
            if not moved.any():
                continue
            ids, images = ids[moved], torch.from_numpy(images[moved])
            draws = Draws(store.spec["protocol"]["seed"], f"transfer/{source}/{evaluation}", ids)
            verdict = fresh_verdict(model, images.clamp(0, 1), dataset.labels[torch.from_numpy(ids)], draws)
            correct, count = verdict.correct.numpy(), np.asarray(verdict.draws)
            right, mine = majority(correct, count), own.rows.of(ids)
            beaten = mine.correct & ~right & surely_fell(mine.share, correct / count, count)
            yield _pair(source, store.model, evaluation, right, still, int(beaten.sum()))


def _pair(source: str, target: str, evaluation: str, right: Array, own: Array, beaten: int) -> Pair:
    k, n = int(right.sum()), len(right)
    return Pair(source, target, evaluation, n, k, k / n, *wilson(k, n), int(own.sum()), beaten)


def _flags(pairs: list[Pair]) -> Iterator[Flag]:
    for pair in pairs:
        if pair.beaten > MAX_BEATEN * pair.left:
            yield Flag(
                pair.target, pair.evaluation, "transfer_beats_white_box", "warning",
                f"Pictures made for {pair.source} break {pair.beaten} of {pair.left} samples that the attack "
                f"on {pair.target} itself has left. Its gradients may be masked: read its robust accuracy as "
                "an upper bound, and try joint-adaptive.",
            )  # fmt: skip


def _write(file: Path, pairs: list[Pair]) -> None:
    with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f.name for f in fields(Pair)])
        writer.writerows(astuple(pair) for pair in pairs)


def _print(console: Console, pairs: list[Pair], flags: list[Flag]) -> None:
    """Print a table for each evaluation: accuracy by source (rows) and target (columns).

    The intervals, for which a terminal has no room, are in transfer.csv.
    """
    cells = {(pair.evaluation, pair.source, pair.target): pair for pair in pairs}
    targets = list(dict.fromkeys(pair.target for pair in pairs))
    for evaluation in dict.fromkeys(pair.evaluation for pair in pairs):
        console.print(
            f"\n{evaluation}: % still right, of what is right unattacked and was moved", markup=False
        )
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("made for \\ shown to", no_wrap=True)
        for target in targets:
            table.add_column(target.replace("-", "\n"), justify="right")
        for source in targets:
            found = [cells.get((evaluation, source, target)) for target in targets]
            table.add_row(source, *(f"{100 * pair.share:.1f}" if pair else "" for pair in found))
        console.print(table)
    for flag in flags:
        console.print(
            f"\n{flag.severity}: {flag.model}, {flag.evaluation}, {flag.flag}: {flag.message}", markup=False
        )
