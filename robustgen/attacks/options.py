"""The base of every attack's options: how they are validated, and how they show in the attack's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from robustgen import strict

LETTERS = {
    "steps": "s",
    "restarts": "r",
    "rel_stepsize": "a",
    "n_iter": "i",
    "n_target_classes": "t",
    "n_queries": "q",
    "eot": "e",
    "loss": "",
    "iterate": "",
}
"""What precedes an option's value in the name of an attack; a flag that is on shows by its own name."""


class AttackOptions(strict.Strict):
    """The options of an attack; the defaults are the attack's reference settings.

    >>> class SquareOptions(AttackOptions):
    ...     n_queries: int = 5000
    >>> SquareOptions(n_queries=500).attack_name("square")
    'square-q500'
    >>> SquareOptions().attack_name("square")
    'square'
    """

    @classmethod
    def validated(cls, options: Mapping[str, Any], attack: str) -> Self:
        """Validate the options given for ``attack``; UserError for an unknown name or a bad value."""
        return strict.validate(cls, dict(options), where=f"options of the attack {attack!r}")

    def attack_name(self, attack: str) -> str:
        """``attack`` and every option that is not at its default, so that a smaller budget shows in the
        name."""
        changed = [
            key
            if value is True
            else f"{LETTERS[key]}{format(value, 'g') if isinstance(value, float) else value}"
            for key, value in self.model_dump(exclude_defaults=True).items()
        ]
        return "-".join([attack, *changed])
