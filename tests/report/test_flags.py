"""What a flag says, of which numbers, and where its fact ends."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from robustgen.report import flags
from robustgen.report.flags import doubts_of, evaluations_of, fact_and_remedy, flag_groups
from robustgen.types import unbroken


def test_examples_of_the_docstrings() -> None:
    assert doctest.testmod(flags).failed == 0


@pytest.mark.parametrize("name", ["St. Bernard", "a. b. c", "ends in a stop.", "cat"])
def test_a_name_with_a_full_stop_does_not_end_the_fact(name: str) -> None:
    fact, remedy = fact_and_remedy(f"Few are of {unbroken(repr(name))} or of dogs. Take all. Or more.")
    assert fact.replace("\N{NO-BREAK SPACE}", " ") == f"Few are of {name!r} or of dogs."
    assert remedy == "Take all. Or more."


@pytest.mark.parametrize(
    ("evaluation", "doubted"),
    [
        ("clean", {"clean"}),
        ("pgd", {"pgd", "worst-linf-0.1", "worst-linf-0.2"}),
        ("wide", {"wide", "worst-linf-0.2"}),
        ("probes", {"probes", "pgd", "wide", "guarded", "worst-linf-0.1", "worst-linf-0.2"}),
        ("", {"clean", "ood-letters"}),
    ],
)
def test_a_flag_doubts_all_numbers_that_hang_on_it(evaluation: str, doubted: set[str]) -> None:
    details = [
        {"name": "clean", "kind": "clean"}, {"name": "probes", "kind": "probes"},
        {"name": "pgd", "kind": "attack", "norm": "linf", "eps": 0.1},
        {"name": "wide", "kind": "attack", "norm": "linf", "eps": 0.2},
        {"name": "guarded", "kind": "detected", "norm": "linf", "eps": 0.1},
    ]  # fmt: skip
    content = {
        "models": [{"name": "m", "evaluations": details}],
        "metrics": [{"model": name, "evaluation": e} for name, e in
                    (("m", "clean"), ("m", "ood-letters"), ("other", "gradients"))],
    }  # fmt: skip
    assert evaluations_of(content, {"model": "m", "evaluation": evaluation}) == doubted


def flag(evaluation: str, message: str, severity: str = "warning") -> dict[str, Any]:
    return {"model": "m", "evaluation": evaluation, "flag": "f", "severity": severity, "message": message}


def test_flags_share_a_group_by_their_remedy_and_the_gravest_comes_first() -> None:
    several = [
        flag("pgd", "1 of 8 lost. Look."),
        flag("fgsm", "1 of 8 lost. Look."),
        flag("pgd", "2 of 8 lost. Look."),
        flag("", "Nothing is there", "error"),
    ]
    content = {"flags": several, "metrics": [], "models": []}
    groups = flag_groups(content)
    assert [(g.severity, g.remedy) for g in groups] == [("error", ""), ("warning", "Look.")]
    assert groups[0].facts == [("Nothing is there.", ["m"])]
    assert groups[1].facts == [("1 of 8 lost.", ["m (pgd)", "m (fgsm)"]), ("2 of 8 lost.", ["m (pgd)"])]


def test_a_number_leads_to_its_first_doubt_and_notes_are_none() -> None:
    several = [
        flag("pgd", "Late. Wait.", "info"),
        flag("pgd", "Weak. Mend it."),
        flag("pgd", "Wrong. Throw it away.", "error"),
    ]
    metric = {"model": "m", "evaluation": "pgd", "metric": "robust_accuracy"}
    content = {"flags": several, "metrics": [metric], "models": []}
    assert doubts_of(content, flag_groups(content)) == {("m", "pgd", "robust_accuracy"): (0, "Wrong.")}
    content["flags"] = several[:1]
    assert doubts_of(content, flag_groups(content)) == {}


def test_probabilities_cast_no_doubt_on_what_the_largest_output_decides() -> None:
    of_clean = [
        {"model": "m", "evaluation": "clean", "metric": metric} for metric in ("accuracy", "ece", "nll")
    ]
    gain = {"model": "m", "evaluation": "gradients", "metric": "guidance_gain"}
    found = {**flag("", "Probabilities. Return logits.", "error"), "flag": "probabilities"}
    content = {"flags": [found], "metrics": [*of_clean, gain], "models": []}
    doubts = doubts_of(content, flag_groups(content))
    assert {metric for _, _, metric in doubts} == {"ece", "nll", "guidance_gain"}
