"""``make zoo``: measure what every card claims, on as many test pictures, and compare.

Prints a line a claim and, last, how many were reproduced; exits 1 if one was not. ``--write``
replaces the claims of the cards by what was measured, for a zoo that was trained anew; with
``--protocol NAME --n N`` it has them claim what that protocol measures too.

A claim is reproduced when the value measured now is no further from it than a tenth of the claim's own
95 % interval: the same weights on the same pictures leave only the last bits of other kernels, which
may turn a verdict or two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from robustgen import data, registry
from robustgen.config import Claim, ModelCard
from robustgen.disk import atomic, read_json
from robustgen.types import Metric

REPEAT = 0.1
# What a card claims of a protocol: (metric, evaluation); "*" takes every evaluation.
CLAIMED = {
    "clean": [("accuracy", "clean"), ("ece", "clean")],
    "linf-0.15": [
        ("accuracy", "clean"), ("robust_accuracy", "autoattack-linf-0.15"), ("ece", "clean"),
        ("guidance_gain", "*"), ("psnr_gain", "*"), ("auroc", "*"),
    ],
    "gains": [("guidance_gain", "*"), ("psnr_gain", "*")],
    "linf-8-255": [("robust_accuracy", "autoattack-linf-8-255")],
    "l2-0.5": [("robust_accuracy", "autoattack-l2-0.5")],
}  # fmt: skip
# A model of more than MANY network calls a picture claims what it is on FEW test pictures at most.
MANY, FEW = 50, 500


def claimed(card: ModelCard) -> dict[str, int]:
    """The protocols of a card's claims, and how many test pictures each is of (a claim of foreign pictures
    counts both); of a card that claims nothing yet, those of its data's zoo."""
    found: dict[str, int] = {}
    for claim in card.claims:
        found[claim.protocol] = min(claim.n, found.get(claim.protocol, claim.n))
    whole = len(data.load(card.data))
    first = "linf-0.15" if card.data == "digits" and card.calls == 1 else "clean"
    return found or {first: whole if card.calls <= MANY else min(whole, FEW)}


def measure(protocol: str, names: list[str], source: str, n: int, out: Path) -> list[Metric]:
    """Every metric of these models under a protocol, on the first n test pictures of their data.

    The models are computed side by side, a process a core, by the command that anyone would type;
    then the same command for all of them finds every chunk finished, and makes the page.
    """
    command = [sys.executable, "-m", "robustgen.cli", "report"]
    options = ["--data", source, "--protocol", protocol, "--n", str(n), "--out", str(out)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(subprocess.run, [*command, name, *options], check=True) for name in names]
    for run in runs:
        run.result()
    subprocess.run([*command, *names, *options], check=True)
    return [Metric(**metric) for metric in read_json(out / "summary.json")["metrics"]]


def check(card: ModelCard, protocol: str, metrics: list[Metric]) -> list[str]:
    """A sentence for each claim of a card under a protocol, beginning with ok or MISS."""
    found = {(m.metric, m.evaluation, m.variant): m for m in metrics}
    claims = [claim for claim in card.claims if claim.protocol == protocol]
    sentences = [] if claims else [f"MISS {card.name} claims nothing of {protocol}"]
    for claim in claims:
        key = (claim.metric, claim.evaluation, claim.variant)
        what = f"{card.name} {' '.join(part for part in key if part)}: claimed {claim.value:.4f}"
        if key not in found:
            sentences.append(f"MISS {what}, not measured")
            continue
        now = found[key]
        same = now.n == claim.n and abs(now.value - claim.value) <= REPEAT * (claim.ci_high - claim.ci_low)
        sentences.append(
            f"{'ok  ' if same else 'MISS'} {what} [{claim.ci_low:.4f}, {claim.ci_high:.4f}] (n = {claim.n}), "
            f"measured {now.value:.4f} (n = {now.n})"
        )
    return sentences


def claims_of(protocol: str, metrics: list[Metric]) -> list[Claim]:
    """What a card states of a protocol's metrics, as claims."""
    wanted = CLAIMED[protocol]
    return [
        Claim(protocol=protocol, **{k: getattr(m, k) for k in ("evaluation", "metric", "variant", "n")},
              **{k: round(getattr(m, k), 6) + 0.0 for k in ("value", "ci_low", "ci_high")})
        for m in metrics
        if (m.metric, m.evaluation) in wanted or (m.metric, "*") in wanted
    ]  # fmt: skip


def write_claims(folder: Path, protocol: str, metrics: list[Metric]) -> None:
    """Replace what a card claims of a protocol; its other claims stay."""
    card = registry.load_card(folder)
    others = [claim for claim in card.claims if claim.protocol != protocol]
    claims = [*others, *claims_of(protocol, metrics)]
    content = card.model_copy(update={"claims": claims}).model_dump(mode="json", exclude_defaults=True)
    with atomic(folder / "card.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True))


def cards_by_run(pattern: str, more: dict[str, int]) -> dict[tuple[str, str, int], list[ModelCard]]:
    """The classifiers of the zoo that match a glob, by their data, and each protocol and n of their claims
    and of ``more``."""
    found = defaultdict(list)
    for reference in registry.resolve(pattern):
        assert isinstance(reference, registry.ZooModel)
        card = registry.load_card(reference.folder)
        if card.family != "denoiser":
            for protocol, n in (claimed(card) | more).items():
                found[card.data, protocol, n].append(card)
    return dict(found)


def main() -> int:
    """Measure, compare or write, print the figure last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default="*", help="a glob of zoo names")
    parser.add_argument("--out", type=Path, default=Path("out/zoo"), help="where the reports go")
    parser.add_argument("--write", action="store_true", help="replace the cards' claims by what is measured")
    parser.add_argument("--protocol", choices=CLAIMED, help="with --n: a protocol more")
    parser.add_argument("--n", type=int, help="on how many test pictures")
    arguments = parser.parse_args()
    if (arguments.protocol is None) != (arguments.n is None):
        parser.error("--protocol and --n go together")
    more = {arguments.protocol: arguments.n} if arguments.protocol else {}
    sentences = []
    runs = cards_by_run(arguments.models, more)
    for (source, protocol, n), cards in runs.items():
        names = [card.name for card in cards]
        few = "-few" if any(run[:2] == (source, protocol) and run[2] > n for run in runs) else ""
        metrics = measure(protocol, names, source, n, arguments.out / f"{source}-{protocol}{few}")
        for card in cards:
            own = [metric for metric in metrics if metric.model == card.name]
            if arguments.write:
                write_claims(registry.model_folders()[card.name], protocol, own)
            else:
                sentences += check(card, protocol, own)
    if arguments.write:
        print("the cards now claim what was measured")
        return 0
    print("\n".join(sentences))
    missed = sum(sentence.startswith("MISS") for sentence in sentences)
    print(f"{len(sentences) - missed} of {len(sentences)} claims reproduced")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
