"""Attacks of other libraries, by ``LIBRARY:NAME`` in a protocol, such as torchattacks:CW.

They are taken as they are, with their own defaults; what they return is judged as any attack's is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from robustgen.attacks.outside import names
from robustgen.errors import UnsupportedError, missing_package, unknown_name

if TYPE_CHECKING:
    from robustgen.perturb import Attack
    from robustgen.threat import ThreatModel


def known() -> dict[str, str]:
    """Every attack that ``build`` takes, and in a few words what it is for; imports none of the libraries."""
    return {
        f"{library}:{name}": f"{name} of the package {library}, {' or '.join(norms)}; seeded by chunk"
        for library, attacks in names.NORMS.items()
        for name, norms in attacks.items()
        if set(norms) <= names.OURS
    }


def build(name: str, threat: ThreatModel, options: Mapping[str, Any]) -> Attack:
    """The attack ``LIBRARY:NAME`` within a threat model, with options of the outside class's own names.

    Raises UserError for names and options that the library does not have, for a norm that the attack
    is not for, and where the package is not installed.
    """
    library, _, attack = name.partition(":")
    if library not in names.NORMS:
        raise unknown_name("attack library", library, names.NORMS, where=name)
    if attack in names.REFUSED[library]:
        raise UnsupportedError(f"{name} cannot be used here: {names.REFUSED[library][attack]}")
    if attack not in names.NORMS[library]:
        raise unknown_name("attack", name, [f"{library}:{known}" for known in names.NORMS[library]])
    norms = names.NORMS[library][attack]
    if threat.norm not in norms:
        raise UnsupportedError(
            f"{name} is an attack in another norm", where=name, expected=" or ".join(norms), got=threat.norm
        )
    if find_spec(library) is None:
        raise missing_package(library, library, f"the attack {name}")
    module = import_module(f"robustgen.attacks.outside.{library}")
    built: Attack = module.build(attack, threat, options)
    return built
