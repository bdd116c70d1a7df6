"""``make zoo``: measure what every card claims, on the whole test split, and compare.

Prints a line a claim and, last, how many were reproduced; exits 1 if one was not. ``--write``
replaces the claims of the cards by what was measured, for a zoo that was trained anew.

A claim is reproduced when the value measured now lies within the claim's own 95 % interval and no
further from it than REPEAT samples: the same weights on the same pictures leave only the last bits
of other kernels, which may turn a verdict or two.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import yaml
from robustgen.report.render import render

from robustgen import data, engine, registry
from robustgen.config import Claim, ModelCard
from robustgen.report.summary import summarise
from robustgen.store import atomic
from robustgen.types import Metric

OUT = Path("out/zoo")
REPEAT = 4
# What a card claims, by protocol: (metric, evaluation); "*" takes every evaluation of that metric.
CLAIMED = {
    "linf-0.15": [("accuracy", "clean"), ("robust_accuracy", "autoattack-linf-0.15"), ("ece", "clean"),
                  ("guidance_gain", "*"), ("psnr_gain", "*"), ("auroc", "*")],
}  # fmt: skip


def measure(protocol: str, names: list[str], source: str, out: Path) -> list[Metric]:
    """Every metric of these models under a protocol, on the whole test split of their data."""
    references = [reference for name in names for reference in registry.resolve(name)]
    chosen = registry.load_protocol(protocol)
    n = len(data.load(source))
    outcome = engine.evaluate(references, chosen, source, out, n=n)
    if outcome.failures:
        raise SystemExit("\n".join(f"{name}: {why}" for name, why in outcome.failures.items()))
    content = summarise(out, outcome.runs, n, f"make zoo ({protocol})")
    render(out)
    return [Metric(**metric) for metric in content["metrics"]]


def compare(claim: Claim, metrics: dict[tuple[str, str, str], Metric]) -> tuple[bool, str]:
    """Whether a claim is reproduced, and the sentence that says so."""
    key = (claim.metric, claim.evaluation, claim.variant)
    name = " ".join(part for part in key if part)
    if key not in metrics:
        return False, f"{name}: claimed {claim.value:.4f}, not measured"
    now = metrics[key]
    tolerance = REPEAT / claim.n
    same = claim.ci_low <= now.value <= claim.ci_high and abs(now.value - claim.value) <= tolerance
    same = same and now.n == claim.n
    return same, (
        f"{'ok  ' if same else 'MISS'} {name}: claimed {claim.value:.4f} "
        f"[{claim.ci_low:.4f}, {claim.ci_high:.4f}] (n = {claim.n}), measured {now.value:.4f} (n = {now.n})"
    )


def claims_of(metrics: list[Metric], protocol: str) -> list[Claim]:
    """The metrics that cards state, as claims."""
    wanted = CLAIMED[protocol]
    return [
        Claim(protocol=protocol, **{k: getattr(m, k) for k in ("evaluation", "metric", "variant", "n")},
              value=round(m.value, 6), ci_low=round(m.ci_low, 6), ci_high=round(m.ci_high, 6))
        for m in metrics
        if (m.metric, m.evaluation) in wanted or (m.metric, "*") in wanted
    ]  # fmt: skip


def write_claims(folder: Path, claims: list[Claim]) -> None:
    """Replace the claims of a card."""
    card = registry.load_card(folder)
    content = card.model_copy(update={"claims": claims}).model_dump(mode="json", exclude_defaults=True)
    with atomic(folder / "card.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True))


def cards_by_data(pattern: str) -> dict[str, list[ModelCard]]:
    """The classifiers of the zoo that match a glob, by the data they are for."""
    found = defaultdict(list)
    for reference in registry.resolve(pattern):
        assert isinstance(reference, registry.ZooModel)
        card = registry.load_card(reference.folder)
        if card.family != "denoiser":
            found[card.data].append(card)
    return dict(found)


def main() -> int:
    """Measure, compare or write, print the figure last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default="*", help="a glob of zoo names")
    parser.add_argument("--write", action="store_true", help="replace the cards' claims by what is measured")
    arguments = parser.parse_args()
    reproduced = claimed = 0
    for source, cards in cards_by_data(arguments.models).items():
        names = [card.name for card in cards]
        for protocol in CLAIMED:
            if source not in registry.load_protocol(protocol).data:
                continue
            metrics = measure(protocol, names, source, OUT / f"{source}-{protocol}")
            for card in cards:
                own = [metric for metric in metrics if metric.model == card.name]
                if arguments.write:
                    write_claims(registry.model_folders()[card.name], claims_of(own, protocol))
                    continue
                print(card.name)
                by_key = {(m.metric, m.evaluation, m.variant): m for m in own}
                for claim in (claim for claim in card.claims if claim.protocol == protocol):
                    same, sentence = compare(claim, by_key)
                    print(f"  {sentence}")
                    claimed, reproduced = claimed + 1, reproduced + same
    print(f"{reproduced} of {claimed} claims reproduced")
    return 0 if reproduced == claimed else 1


if __name__ == "__main__":
    sys.exit(main())
