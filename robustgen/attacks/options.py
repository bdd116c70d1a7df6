"""What the options of every attack share: validation, and the mark that they leave on its name."""

from __future__ import annotations

from robustgen.strict import Strict

# An option's letter in the name of an attack; an option without one (a word) stands by its value, or,
# where it says yes or no, by its name.
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


class Options(Strict):
    """The options of an attack; their defaults are the attack's reference settings.

    >>> class Query(Options):
    ...     n_queries: int = 5000
    >>> Query(n_queries=500).mark("square")
    'square-q500'
    >>> Query().mark("square")
    'square'
    """

    def mark(self, name: str) -> str:
        """``name``, and every option that is not at its default: a smaller budget shows in the name."""
        changed = [
            key
            if value is True
            else f"{LETTERS[key]}{format(value, 'g') if isinstance(value, float) else value}"
            for key, value in self.model_dump(exclude_defaults=True).items()
        ]
        return "-".join([name, *changed])
