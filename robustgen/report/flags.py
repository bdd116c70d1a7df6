"""The flags of a summary: what each is about, in which words, and the numbers that it casts doubt on."""

from __future__ import annotations

from typing import Any, NamedTuple

from robustgen.report.content import FlagLine
from robustgen.threat import worst_name
from robustgen.types import ATTACKED

# What gradients are like says whether the attacks that climb them can be believed.
OF_GRADIENTS = ("probes", "climbs")

Doubts = dict[tuple[str, str, str], tuple[int, str]]
"""By (model, evaluation, metric) of a number: the place of its first doubt on the page, and the fact."""

PROBABILITIES = "probabilities"
BY_LARGEST = ("accuracy", "corruption_accuracy")
"""Numbers that only the largest output decides: they are right where outputs are probabilities."""


class FlagGroup(NamedTuple):
    """Flags that share a remedy: each fact with the models and evaluations that it is true of."""

    severity: str
    flag: str
    remedy: str
    facts: list[tuple[str, list[str]]]


def fact_and_remedy(message: str) -> tuple[str, str]:
    """A flag's message in two: its first sentence, and what follows; "" where nothing does.

    >>> fact_and_remedy("3 of 8 evaluated. The same command tries again. Or wait.")
    ('3 of 8 evaluated.', 'The same command tries again. Or wait.')
    """
    fact, _, remedy = message.partition(". ")
    return fact.rstrip(".") + ".", remedy


def flag_groups(content: dict[str, Any]) -> list[FlagGroup]:
    """Flags of one kind and remedy together, the gravest first; the remedy is said once a group."""
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for flag in content["flags"]:
        fact, remedy = fact_and_remedy(flag["message"])
        facts = groups.setdefault((flag["severity"], flag["flag"], remedy), {})
        where = f"{flag['model']} ({flag['evaluation']})" if flag["evaluation"] else flag["model"]
        facts.setdefault(fact, []).append(where)
    found = [FlagGroup(*key, list(facts.items())) for key, facts in groups.items()]
    return sorted(found, key=lambda group: ("error", "warning", "info").index(group.severity))


def doubts_of(content: dict[str, Any], groups: list[FlagGroup]) -> Doubts:
    """The numbers that an error or a warning doubts."""
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


def evaluations_of(content: dict[str, Any], flag: FlagLine) -> set[str]:
    """The evaluations that a flag casts doubt on: its own; all of the model, if it names none; if it is of
    probes or climbs, every attack too. With each attack, the worst cases of its norm at that eps and above.
    """
    if not flag["evaluation"]:
        return {m["evaluation"] for m in content["metrics"] if m["model"] == flag["model"]}
    of_model = (model["evaluations"] for model in content["models"] if model["name"] == flag["model"])
    details = {detail["name"]: detail for detail in next(of_model, [])}
    kind = details.get(flag["evaluation"], {}).get("kind")
    found = {flag["evaluation"]}
    if kind in OF_GRADIENTS:
        found |= {name for name, detail in details.items() if detail["kind"] in ATTACKED}
    attacks = [detail for detail in details.values() if detail["kind"] == "attack"]
    return found | {
        worst_name(other["norm"], other["eps"])
        for attack in attacks for other in attacks
        if attack["name"] in found and other["norm"] == attack["norm"] and other["eps"] >= attack["eps"]
    }  # fmt: skip
