"""summary.csv and summary.json from stored rows: metrics, paired tests, flags, costs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from robustgen import __version__
from robustgen.disk import atomic, cannot_write, read_json, write_json
from robustgen.errors import UserError
from robustgen.metrics.comparisons import compare
from robustgen.metrics.corruption_estimates import relative_errors
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.estimate import Estimate
from robustgen.metrics.measure import is_finite, measure
from robustgen.metrics.rows import Run, read_run
from robustgen.places import is_remote, relative_path, resolve_path
from robustgen.report.columns import columns, tested
from robustgen.report.content import (
    ComparisonEntry,
    EvaluationEntry,
    FlagEntry,
    MetricEntry,
    ModelEntry,
    Summary,
    by_key,
    names_of,
)
from robustgen.report.formats import format_value
from robustgen.store import RunStore
from robustgen.types import Flag, Metric, Severity, unbroken


def summarise(
    out: Path,
    runs: list[RunStore],
    n: int | None,
    command: str,
    failures: Mapping[str, str] | None = None,
    estimates: Mapping[str, dict[str, Any]] | None = None,
    earlier: Sequence[Summary] = (),
) -> Summary:
    """Compute every metric, paired test and flag of the runs, and write OUT/summary.csv and OUT/summary.json.

    ``n``: samples asked for (None: all); ``command``: how to run it again; ``failures``: the error of each
    model that failed, a flag where the model has no run; ``estimates``: a model's estimated cost, stored
    beside the actual one; ``earlier``: the summaries that the runs come from, whose flags of models without a
    run are kept, as are estimates for the same n. Returns the content of summary.json.
    """
    if not runs:
        raise UserError("there is nothing to summarise", where=out, expected="at least one run with rows")
    read = [read_run(store, n) for store in runs]
    measured = _measured(read)
    absent = [flag for summary in earlier for flag in _not_evaluated(summary)]
    absent += [_absent(*failure) for failure in (failures or {}).items()]
    costs = dict(pair for summary in earlier if summary["n"] == n for pair in _estimates(summary))
    costs |= estimates or {}
    kept = [e for several in measured.values() for e in several if is_finite(e.metric)]
    spec = runs[0].spec
    content: Summary = {
        "robustgen": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "n": n,
        "data": spec["data"],
        "protocol": spec["protocol"],
        "models": [
            _model(out, store, run, n, costs.get(store.model)) for store, run in zip(runs, read, strict=True)
        ],
        "metrics": [cast(MetricEntry, asdict(estimate.metric)) for estimate in kept],
        "flags": [cast(FlagEntry, asdict(flag)) for flag in _flags(read, measured, absent)],
        "comparisons": [],
    }
    content["comparisons"] = [cast(ComparisonEntry, asdict(test)) for test in compare(kept, tested(content))]
    _write_csv(out / "summary.csv", [estimate.metric for estimate in kept])
    write_json(out / "summary.json", content)
    return content


def _measured(runs: list[Run]) -> dict[str, list[Estimate]]:
    """Every estimate of the runs, by model."""
    found = {run.model: measure(run) for run in runs}
    for estimate in _relative(runs):
        found[estimate.metric.model].append(estimate)
    return found


def _relative(runs: list[Run]) -> Iterator[Estimate]:
    """Corruption errors relative to the baseline model that the protocol names, if it is among the runs."""
    spec = runs[0].spec
    family = next((e["baseline"] for e in spec["protocol"]["evaluations"] if e.get("baseline")), None)
    if family is not None:
        yield from relative_errors(runs, f"{family}-{spec['data']['name']}")


def _flags(runs: list[Run], measured: dict[str, list[Estimate]], absent: list[Flag]) -> list[Flag]:
    """The doubts about the runs, about numbers that are not finite, and ``absent`` for models without a run;
    errors first, then warnings."""
    flags = [flag for run in runs for flag in find_doubts(run)]
    estimates = [estimate for several in measured.values() for estimate in several]
    flags += [_not_finite(e.metric) for e in estimates if not is_finite(e.metric)]
    flags += {flag.model: flag for flag in absent if flag.model not in measured}.values()
    return sorted(flags, key=lambda flag: get_args(Severity).index(flag.severity))


class Gathered(NamedTuple):
    """The runs of several reports, the smallest n that was asked for (None: all), and the summaries."""

    runs: list[RunStore]
    n: int | None
    earlier: list[Summary]


def gather(folders: Iterable[Path], out: Path) -> Gathered:
    """Collect the runs of several reports for ``summarise``, and create ``out``.

    UserError where the reports differ in data or protocol, or share a model's name.
    """
    reports = [(folder, read_summary(folder / "summary.json")) for folder in folders]
    runs: dict[str, RunStore] = {}
    for folder, content in reports:
        for path in _paths(content):
            store = RunStore.read(resolve_path(folder, path))
            if store.model in runs:
                raise UserError(
                    f"two reports have a model named {store.model!r}",
                    where=f"{runs[store.model].path} and {store.path}",
                    remedy="leave one of them out",
                )
            runs[store.model] = store
    _check_alike(list(runs.values()))
    earlier = [content for _, content in reports]
    asked = [content["n"] for content in earlier if content["n"] is not None]
    try:
        if not is_remote(out):
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from None
    return Gathered(list(runs.values()), min(asked, default=None), earlier)


def _paths(content: Summary) -> list[str]:
    """The paths of a report's runs, relative to its folder."""
    return [str(model["path"]) for model in content["models"]]


def read_summary(file: Path) -> Summary:
    """Read a report's summary.json; UserError where it is not one."""
    if not file.exists():
        raise UserError(
            "there is no report here", where=file.parent, expected="the --out of 'robustgen report', which "
            "has a summary.json", got="no summary.json", remedy="check the path",
        )  # fmt: skip
    content = read_json(file)
    try:
        _paths(content)
        for key in ("n", "data", "protocol", "metrics", "flags"):
            content[key]
        _not_evaluated(content), list(_estimates(content))
        return cast(Summary, dict(content))
    except (KeyError, TypeError) as error:
        raise UserError(
            "this is not the summary of a report", where=file,
            expected="a file written by 'robustgen report'",
            got=f"no key {error}" if isinstance(error, KeyError) else error,
            remedy="name the folder of a report",
        ) from None  # fmt: skip


def _check_alike(runs: list[RunStore]) -> None:
    for store in runs[1:]:
        for what, key in (("data", "fingerprint"), ("protocol", "name"), ("protocol", "version")):
            ours, theirs = runs[0].spec[what][key], store.spec[what][key]
            if ours != theirs:
                raise UserError(
                    f"these reports cannot share a table: they differ in {what}",
                    where=store.path,
                    expected=f"{key} {ours}, as in {runs[0].path}",
                    got=theirs,
                )
        _check_protocols(runs[0], store)


def _check_protocols(first: RunStore, store: RunStore) -> None:
    """UserError where two protocols of one name and version differ in more than words and n."""
    ours, theirs = first.spec["protocol"], store.spec["protocol"]
    words = ("summary", "cost", "n")
    other = [key for key in ours if key in theirs and key not in words and ours[key] != theirs[key]]
    if other:
        raise UserError(
            f"these reports cannot share a table: two different protocols are named {ours['name']!r}",
            where=store.path,
            expected=f"as in {first.path}: " + "; ".join(f"{k} {str(ours[k])[:120]}" for k in other),
            got="; ".join(f"{key} {str(theirs[key])[:120]}" for key in other),
            remedy="run 'robustgen report' again for one of them, with the protocol of the other",
        )


def headline(content: Summary) -> tuple[list[str], list[list[str]]]:
    """The main table transposed, as text for a terminal: titles, and a row for each column of the main table.

    Names of models are broken at their hyphens, so that several fit.
    """
    numbers, names = by_key(content), names_of(content)
    rows = []
    for column in columns(content):
        found = [numbers.get((name, *column.key)) for name in names]
        title = f"{column.group.removeprefix('Attacked, ')}: {column.title}"
        rows.append([title, *(format_value(metric) if metric else "" for metric in found)])
    return ["", *(name.replace("-", "\n") for name in names)], rows


def _model(
    out: Path, store: RunStore, run: Run, n: int | None, estimate: dict[str, Any] | None
) -> ModelEntry:
    return {
        **cast(ModelEntry, store.spec["model"]),
        "path": relative_path(store.path, out),
        "kernels": store.spec["kernels"],
        "environment": store.environment,
        "evaluations": [cast(EvaluationEntry, e.detail) for e in run.evaluations.values()],
        "costs": [
            {
                "evaluation": evaluation.name,
                "n": len(evaluation.rows),
                "forwards": float(evaluation.rows.forwards.mean()),
                "backwards": float(evaluation.rows.backwards.mean()),
                "seconds": store.seconds(evaluation.name, n),
            }
            for evaluation in run.evaluations.values()
            if evaluation.rows is not None
        ],
        "estimate": estimate,
    }


def _absent(model: str, message: str) -> Flag:
    return Flag(
        model, "", "not_evaluated", "error",
        f"This model is missing because it failed: {unbroken(message.splitlines()[0])}. Run the same "
        "'robustgen report' command again to retry it.",
    )  # fmt: skip


def _not_evaluated(content: Summary) -> list[Flag]:
    """The flags of a summary that ``_absent`` made."""
    return [Flag(**flag) for flag in content["flags"] if flag["flag"] == "not_evaluated"]


def _estimates(content: Summary) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, estimate) of the models of a summary that have one."""
    for model in content["models"]:
        estimate = model.get("estimate")
        if estimate is not None:
            yield model["name"], estimate


def _not_finite(metric: Metric) -> Flag:
    what = f"{metric.metric} {metric.variant}".strip()
    return Flag(
        metric.model, metric.evaluation, "not_finite", "error",
        f"{what} is left out: its value ({metric.value:g}) or its interval is not finite. Check the model's "
        "logits ('robustgen check MODEL').",
    )  # fmt: skip


def _write_csv(file: Path, metrics: list[Metric]) -> None:
    with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f.name for f in fields(Metric)])
        writer.writerows(asdict(metric).values() for metric in metrics)
