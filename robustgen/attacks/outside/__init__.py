"""Attacks of other libraries, named ``LIBRARY:NAME`` in a protocol, such as torchattacks:CW.

They run unchanged, with their own defaults; what they return is judged as that of any attack.
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
    """The name and a short description of every attack that ``build`` takes; imports none of the
    libraries."""
    return {
        f"{library}:{name}": f"{name} of the package {library}, {' or '.join(norms)}; seeded by chunk"
        for library, attacks in names.NORMS.items()
        for name, norms in attacks.items()
        if set(norms) <= names.SUPPORTED_NORMS
    }


def build(name: str, threat: ThreatModel, options: Mapping[str, Any]) -> Attack:
    """The attack ``LIBRARY:NAME`` for a threat model; options have the names of the library's own parameters.

    Raises UserError for names and options that the library does not have, for a norm that the attack does not
    support, and where the package is not installed.
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
            f"{name} does not support this norm", where=name, expected=" or ".join(norms), got=threat.norm
        )
    if find_spec(library) is None:
        raise missing_package(library, library, f"the attack {name}")
    module = import_module(f"robustgen.attacks.outside.{library}")
    built: Attack = module.build(attack, threat, options)
    return built
