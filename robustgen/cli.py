"""The command line: parses arguments, calls the module that does the work, and prints the result.

Heavy modules are imported inside the commands, so that --help takes under a second.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustgen import __version__
from robustgen.errors import UserError
from robustgen.places import as_path
from robustgen.terminal import Commands, Progress, console, examples, print_path, print_table

if TYPE_CHECKING:
    from robustgen.cost import CostEstimate
    from robustgen.report.content import Summary

app = typer.Typer(
    name="robustgen",
    cls=Commands,
    help="How far can an image classifier be trusted when its input is attacked, corrupted or foreign?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=examples("robustgen"),
)


def _models(begun: str) -> list[str]:
    """Completions of a MODEL in the shell."""
    from robustgen.registry import model_folders

    return [name for name in model_folders() if name.startswith(begun)]


def _protocols(begun: str) -> list[str]:
    from robustgen.registry import protocol_files

    return [name for name in protocol_files() if name.startswith(begun)]


DataOption = Annotated[
    str, typer.Option("--data", help="Data set, imagefolder:PATH, FILE.npz, or FILE.parquet.")
]
RootOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data sets (default: ROBUSTGEN_DATA, or the cache)."),
]
CodeOption = Annotated[
    list[Path] | None,
    typer.Option("--code", help="A Python file of a model in the report that may be run; repeatable."),
]
OutOption = Annotated[
    Path,
    typer.Option("--out", help="Folder to write to, or s3://BUCKET/FOLDER.", parser=as_path, metavar="PATH"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog=examples("report"))
def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Zoo names (globs too), a model's folder, FILE.py:NAME, LIBRARY:NAME; none: the data's zoo.",
            autocompletion=_models,
        ),
    ] = None,
    data: DataOption = "digits",
    protocol: Annotated[
        str,
        typer.Option(help="'robustgen list protocols', or a YAML file.", autocompletion=_protocols),
    ] = "quick",
    n: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            help="Only the first n samples of every split and foreign set.",
        ),
    ] = None,
    out: OutOption = Path("out"),
    data_root: RootOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Pictures a call of the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of attacks' gradients: auto, float32 or bf16.")] = "auto",
    executor: Annotated[str, typer.Option(help="Where chunks are computed: local, or ray.")] = "local",
    shard: Annotated[str | None, typer.Option(help="i/k: compute the i-th of k parts of the chunks.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a chunk may take.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate the cost from a few pictures, and stop.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print summary.json (or estimate.json), not a table."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A line for every finished chunk.")
    ] = False,
) -> None:
    """Measure models and write OUT/index.html; finished chunks are not computed again."""
    from robustgen import registry

    chosen = registry.load_protocol(protocol)
    references = registry.resolve_all(models or [], data)
    for name, reason in registry.named_only(data).items() if not models and not quiet else ():
        console.print(f"{name} is left out ({reason}); name it to include it", markup=False)

    from robustgen import chunks, cost, engine, executors
    from robustgen.report import render, summary

    part = chunks.Shard.parse(shard) if shard else None
    options: dict[str, Any] = {
        "n": n, "root": data_root, "batch": batch, "device": device, "precision": precision,
        "limit": time_limit, "executor": executors.by_name(executor),
    }  # fmt: skip
    if dry_run:
        estimates, failures = engine.estimate(references, chosen, data, out, **options)
        cost.write_estimates(out, estimates, n or chosen.n, chosen.name)
        _print_estimates(estimates, as_json)
        return _finish(failures)
    with Progress(quiet, verbose) as show:
        outcome = engine.evaluate(references, chosen, data, out, **options, shard=part, progress=show)
    if part is not None:  # the other shards may not be finished yet
        if not quiet:
            console.print(f"shard {shard} is computed; run the command without --shard to make the page")
        return _finish(outcome.failures)
    estimated = cost.read_estimates(out, n or chosen.n, chosen.name)
    content = summary.summarise(out, outcome.runs, n or chosen.n, _command(), outcome.failures, estimated)
    page = render.render(out)
    _print_content(content, as_json, quiet)
    if not quiet:
        _print_notes(content, n)
        print_path(page)
    _finish(outcome.failures)


def _print_estimates(estimates: list[CostEstimate], as_json: bool) -> None:
    from robustgen import cost

    text = "\n".join(cost.estimate_lines(estimates))
    typer.echo(json.dumps(cost.by_model(estimates), indent=1) if as_json else text)


def _print_content(content: Summary, as_json: bool, quiet: bool = False) -> None:
    """Print a summary as JSON, or its main table unless quiet."""
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    elif not quiet:
        print_table(content)


def _print_notes(content: Summary, asked: int | None) -> None:
    """Print that --n is larger than the test split, and the estimated cost beside the true one."""
    from robustgen import cost

    size = content["data"]["size"]
    if (asked or 0) > size:
        console.print(f"--n {asked}: the test split has {size} samples, and all were used")
    for line in cost.comparison_lines(content):
        console.print(line, markup=False, soft_wrap=True)


@app.command(epilog=examples("train"))
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as models/softmax-digits/recipe.yaml.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The model's folder; default: models/<name>.")
    ] = None,
    data_root: RootOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore checkpoints and an earlier model.")] = False,
) -> None:
    """Train a model from its recipe; an interrupted training continues from its last checkpoint."""
    from robustgen.training.loop import train as run

    folder = run(recipe, out=out, root=data_root, fresh=fresh)
    console.print(f"\n{folder.resolve()}", style="bold")


@app.command(epilog=examples("transfer"))
def transfer(
    folder: Annotated[Path, typer.Argument(help="A finished report.", parser=as_path, metavar="PATH")],
    code: CodeOption = None,
) -> None:
    """Show every model of a report the adversarial pictures that were made for the others."""
    from robustgen.transfer import transfer as run

    run(folder, code=code or ())


@app.command(epilog=examples("check"))
def check(
    model: Annotated[
        str, typer.Argument(help="A zoo name, a model's folder, FILE.py:NAME, or LIBRARY:NAME.")
    ],
    data: DataOption = "digits",
    data_root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the usual mistakes in a model, and say how to correct them."""
    from robustgen import data as datasets
    from robustgen import registry

    reference = registry.resolve_one(model)
    dataset = datasets.load(data, root=data_root)

    from robustgen import check as checks

    problems = checks.check(reference, dataset)
    if as_json:
        typer.echo(json.dumps([problem._asdict() for problem in problems], indent=1))
    for problem in problems if not as_json else ():
        typer.echo(f"{problem.severity}: {problem.what}\n  remedy: {problem.remedy}")
    if not problems and not as_json:
        typer.echo(f"{model} is in order on {data}: logits, finite, deterministic, with gradients, on [0, 1]")
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(2)


@app.command(epilog=examples("verify"))
def verify(
    folder: Annotated[
        Path, typer.Argument(help="The --out of a report, or one run in it.", parser=as_path, metavar="PATH")
    ],
    add: Annotated[
        Path | None,
        typer.Option(help="Adversarial pictures made elsewhere (.npz, .safetensors), to add to a run."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model that they were made for, if the report has several.")
    ] = None,
    code: CodeOption = None,
) -> None:
    """Ask every model again about its stored adversarial pictures, in float32, without attacking."""
    from robustgen.verify import verify_report

    if add is not None:
        _add(folder, add, model, code or [])

    findings = verify_report(folder, code=code or ())
    for finding in findings:
        typer.echo(finding.sentence)
    if any(finding.breaches for finding in findings):
        raise typer.Exit(1)


def _add(folder: Path, file: Path, model: str | None, code: list[Path]) -> None:
    """Add pictures to a run, and write the report again."""
    from robustgen.added import add, outside_budget
    from robustgen.report import render, summary

    for name in add(folder, file, model, code=code):
        outside = outside_budget(folder, name, model)
        note = f" ({outside} pictures lay outside the budget and were projected onto it)" if outside else ""
        console.print(f"added: {name}{note}", markup=False, soft_wrap=True)
    out = folder.parent.parent if (folder / "run.json").is_file() else folder
    runs, n, earlier = summary.gather([out], out)
    print_table(summary.summarise(out, runs, n, str(earlier[0]["command"]), earlier=earlier))
    print_path(render.render(out))


@app.command(epilog=examples("compare"))
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="The --out of several reports.", parser=as_path, metavar="PATH")
    ],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Put the models of several reports on one page."""
    from robustgen.report import render, summary

    runs, n, earlier = summary.gather(folders, out)
    content = summary.summarise(out, runs, n, _command(), earlier=earlier)
    _print_content(content, as_json)
    print_path(render.render(out))


@app.command(epilog=examples("export"))
def export(
    folder: Annotated[Path, typer.Argument(help="A finished report.", parser=as_path, metavar="PATH")],
) -> None:
    """Write a report's robust accuracies as RobustBench's JSON, a file for each model and threat."""
    from robustgen.report.robustbench import export as run

    for path in run(folder):
        typer.echo(path)


@app.command(name="list", epilog=examples("list"))
def list_(
    what: Annotated[str, typer.Argument(help="models, protocols, attacks, corruptions or data.")],
    as_json: JsonOption = False,
) -> None:
    """List what is available, with a one-line summary of each."""
    from robustgen import catalogue

    rows = catalogue.entries(what)
    if as_json:
        typer.echo(json.dumps([{"name": name, "summary": summary} for name, summary in rows], indent=1))
        return
    width = min(28, max(len(name) for name, _ in rows))  # names of outside attacks may be longer
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")


@app.command(epilog=examples("show"))
def show(name: Annotated[str, typer.Argument(help="A model or a protocol, by its name or path.")]) -> None:
    """Show a model's card or a protocol's file."""
    from robustgen import catalogue

    typer.echo(catalogue.show(name))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"robustgen {__version__}")
        raise typer.Exit


def _command() -> str:
    from robustgen.redact import redact

    return redact(shlex.join(["robustgen", *sys.argv[1:]]))


def _finish(failures: dict[str, str]) -> None:
    for model, message in failures.items():
        console.print(f"\n{model} was not finished: {message}", style="red", markup=False, soft_wrap=True)
    if failures:
        console.print(
            "\nMend the model if that is why, and run the same command again to try what is missing."
        )
        raise typer.Exit(1)


def main() -> None:
    """The entry point. A UserError is printed without a traceback and exits with 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # encodings that lack a sign such as ∞
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except UserError as error:
        console.print(f"robustgen: {error}", markup=False, style="red", soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
