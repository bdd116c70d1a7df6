"""The reconciliation study: the same checkpoints under protocols that published numbers were made by.

    python benchmarks/reconcile.py [MODEL ...] [--data digits] [--eps 2/255] [--out out/reconcile]
        [--write FILE.md]

Runs every protocol (`as-...`, the data's standard one, and joint-adaptive in Linf alone) by the command
that anyone would type; what is finished is not computed again. Protocols that are not as they come, of
joint-adaptive or with another ``--eps``, are written into the folder.
Prints one table, models against protocols: robust accuracy in percent with 95 % intervals, and n.
``--write`` puts it into a Markdown file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

from robustgen import registry
from robustgen.disk import read_json

STANDARD = {"digits": "linf-0.15", "cifar10": "linf-8-255"}
REENACTED = ("as-jem-2020", "as-sada-2023", "as-rdc-2024", "as-diffhammer-2024")


def in_linf(name: str, eps: str | None, out: Path) -> str:
    """The path of a protocol, clean pictures and attacks in Linf alone, within ``eps`` where that is given,
    written to ``out``."""
    whole = yaml.safe_load(registry.protocol_files()[name].read_text(encoding="utf-8"))
    wanted = [e for e in whole["evaluations"] if e["kind"] == "clean" or e.get("norm") == "linf"]
    settings = whole["data"] if eps is None else {"any": {"eps": {"linf": eps}}}
    file = out / f"{name if eps else name + '-linf'}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    adapted = whole | {"name": file.stem, "evaluations": wanted, "data": settings}
    file.write_text(yaml.safe_dump(adapted), encoding="utf-8")
    return str(file)


def measure(
    models: list[str], protocol: str, data: str, out: Path, n: int | None
) -> dict[str, dict[str, float]]:
    """The robust accuracy in Linf of every model under a protocol, with its interval and n."""
    command = [sys.executable, "-m", "robustgen.cli", "report", *models, "--data", data]
    first = [] if n is None else ["--n", str(n)]
    folder = out / Path(protocol).stem
    subprocess.run([*command, "--protocol", protocol, "--out", str(folder), *first], check=True)
    rows = [
        row
        for row in read_json(folder / "summary.json")["metrics"]
        if row["metric"] == "robust_accuracy" and not row["variant"] and "-linf-" in row["evaluation"]
    ]
    return {row["model"]: row for row in rows}


def cell(row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    value, low, high = (100 * row[key] for key in ("value", "ci_low", "ci_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="default: the zoo of the data")
    parser.add_argument("--data", default="digits", choices=STANDARD)
    parser.add_argument("--eps", help="in Linf, such as 2/255 (default: as each protocol says)")
    parser.add_argument("--n", type=int, help="the first n samples (default: as each protocol says)")
    parser.add_argument("--out", type=Path, default=Path("out/reconcile"))
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    models = [ref.name for ref in registry.resolve_all(options.models, options.data)]
    protocols = [*REENACTED, STANDARD[options.data]]
    if options.eps:
        protocols = [in_linf(name, options.eps, options.out) for name in protocols]
    protocols.append(in_linf("joint-adaptive", options.eps, options.out))
    found = {name: measure(models, name, options.data, options.out, options.n) for name in protocols}
    counts = [str(max((int(row["n"]) for row in found[name].values()), default=0)) for name in protocols]
    lines = [
        "| model | "
        + " | ".join(f"{Path(p).stem} (n = {n})" for p, n in zip(protocols, counts, strict=True))
        + " |",
        "|--" * (len(protocols) + 1) + "|",
        *("| " + " | ".join([m, *(cell(found[p].get(m)) for p in protocols)]) + " |" for m in models),
    ]
    table = "\n".join(lines)
    if options.write:
        options.write.write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
