"""What ``robustgen list`` and ``robustgen show`` print."""

from __future__ import annotations

from pathlib import Path

from robustgen import registry
from robustgen.config import Protocol
from robustgen.errors import LISTED, UserError, unknown_name


def entries(what: str) -> list[tuple[str, str]]:
    """(name, summary) of every model, protocol, attack, corruption or data set."""
    match what:
        case "models":
            cards = [registry.load_card(folder) for folder in registry.model_folders().values()]
            return [(card.name, card.summary) for card in cards]
        case "protocols":
            protocols = [registry.load_protocol(name) for name in registry.protocol_files()]
            return [(protocol.name, protocol.summary) for protocol in protocols]
        case "attacks":
            from robustgen.attacks import ATTACKS, outside

            own = [(name, entry.summary) for name, entry in ATTACKS.items()]
            return [*own, *outside.known().items()]
        case "corruptions":
            from robustgen.corruptions import CORRUPTIONS

            return [(name, kind.missing() or kind.summary) for name, kind in CORRUPTIONS.items()]
        case "data":
            from robustgen.data import DERIVED, HELD_OUT, SOURCES
            from robustgen.data.classes import SUMMARY

            made = [(name, f"foreign only: {kind.summary}") for name, kind in DERIVED.items()]
            made.append((HELD_OUT, f"foreign only: {SUMMARY}"))
            return [*((name, source.summary) for name, source in SOURCES.items()), *made]
    raise UserError(f"cannot list {what!r}", expected=", ".join(LISTED.values()), got=what)


def show(name: str) -> str:
    """The text of a model's card or of a protocol, by its name or path.

    Raises UserError if there is none, or it is not valid.
    """
    models, protocols = registry.model_folders(), registry.protocol_files()
    folder = models.get(name, Path(name).resolve())
    if (folder / "card.yaml").is_file():
        registry.load_card(folder)
        return (folder / "card.yaml").read_text(encoding="utf-8")
    file = protocols.get(name, Path(name))
    if file.is_file():
        cost = _cost(registry.load_protocol(name))
        return file.read_text(encoding="utf-8") + cost
    if ":" in name:
        raise UserError(
            "only models with a card, and protocols, can be shown", expected="the name or the path of one",
            got=name, remedy=f"'robustgen check {name}' looks at any model",
        )  # fmt: skip
    raise unknown_name("model or protocol", name, [*models, *protocols], also="the path of one")


def _cost(protocol: Protocol) -> str:
    """What is known of a protocol's cost without a model, and how to measure the rest."""
    pictures = f"the first {protocol.n}" if protocol.n else "all"
    several = "evaluations" if len(protocol.evaluations) > 1 else "evaluation"
    return (
        f"\n# It runs on {pictures} pictures of a test split, in {len(protocol.evaluations)} kinds of "
        f"{several}."
        f"\n# What that takes: robustgen report MODEL --data DATA --protocol {protocol.name} --dry-run"
    )
