"""The flags of a summary: grouped for the page, and the numbers that each casts doubt on."""

from __future__ import annotations

from typing import NamedTuple, get_args

from robustgen.report.content import FlagEntry, Summary
from robustgen.threat import worst_name
from robustgen.types import ATTACKED, Severity

OF_GRADIENTS = ("probes", "climbs")
"""The kinds of evaluations whose flags doubt every attack of the model, since attacks use its gradients."""

Doubts = dict[tuple[str, str, str], tuple[int, str]]
"""The gravest doubt about each (model, evaluation, metric): its index on the page, and its fact."""

PROBABILITIES = "probabilities"
BY_LARGEST = ("accuracy", "corruption_accuracy")
"""Numbers that only the largest output decides: they are right where outputs are probabilities."""


class FlagGroup(NamedTuple):
    """Flags of one name and remedy: each fact with the models and evaluations that it holds for."""

    severity: Severity
    flag: str
    remedy: str
    facts: list[tuple[str, list[str]]]


def fact_and_remedy(message: str) -> tuple[str, str]:
    """A flag's message as its first sentence and the rest, which may be "".

    >>> fact_and_remedy("3 of 8 evaluated. The same command tries again. Or wait.")
    ('3 of 8 evaluated.', 'The same command tries again. Or wait.')
    """
    fact, _, remedy = message.partition(". ")
    return fact.rstrip(".") + ".", remedy


def flag_groups(content: Summary) -> list[FlagGroup]:
    """The flags by severity, name and remedy; errors first."""
    groups: dict[tuple[Severity, str, str], dict[str, list[str]]] = {}
    for flag in content["flags"]:
        fact, remedy = fact_and_remedy(flag["message"])
        facts = groups.setdefault((flag["severity"], flag["flag"], remedy), {})
        where = f"{flag['model']} ({flag['evaluation']})" if flag["evaluation"] else flag["model"]
        facts.setdefault(fact, []).append(where)
    found = [FlagGroup(*key, list(facts.items())) for key, facts in groups.items()]
    return sorted(found, key=lambda group: get_args(Severity).index(group.severity))


def doubts_of(content: Summary, groups: list[FlagGroup]) -> Doubts:
    """The numbers that an error or a warning casts doubt on."""
    places = {(group.severity, group.flag, group.remedy): place for place, group in enumerate(groups)}
    found: Doubts = {}
    for flag in content["flags"]:
        if flag["severity"] == "info":
            continue
        fact, remedy = fact_and_remedy(flag["message"])
        doubt = (places[flag["severity"], flag["flag"], remedy], fact)
        evaluations = evaluations_of(content, flag)
        for m in content["metrics"]:
            right = flag["flag"] == PROBABILITIES and m["metric"] in BY_LARGEST
            if m["model"] == flag["model"] and m["evaluation"] in evaluations and not right:
                key = (m["model"], m["evaluation"], m["metric"])
                found[key] = min(found.get(key, doubt), doubt)
    return found


def evaluations_of(content: Summary, flag: FlagEntry) -> set[str]:
    """The evaluations that a flag casts doubt on.

    Its own, or all of the model if it names none; for one of OF_GRADIENTS also every attack; and with each
    attack the worst cases of its norm at its eps and above.
    """
    if not flag["evaluation"]:
        return {m["evaluation"] for m in content["metrics"] if m["model"] == flag["model"]}
    of_model = (model["evaluations"] for model in content["models"] if model["name"] == flag["model"])
    details = {detail["name"]: detail for detail in next(of_model, [])}
    own = details.get(flag["evaluation"])
    found = {flag["evaluation"]}
    if own is not None and own["kind"] in OF_GRADIENTS:
        found |= {name for name, detail in details.items() if detail["kind"] in ATTACKED}
    attacks = [detail for detail in details.values() if detail["kind"] == "attack"]
    return found | {
        worst_name(other["norm"], other["eps"])
        for attack in attacks for other in attacks
        if attack["name"] in found and other["norm"] == attack["norm"] and other["eps"] >= attack["eps"]
    }  # fmt: skip
