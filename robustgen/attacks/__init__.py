"""Attacks: the algorithms that seek, within a threat model, a picture that a model gets wrong.

The folder attacks/ at the top level holds the protocols that use them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from robustgen.attacks import outside
from robustgen.config import AttackSpec
from robustgen.errors import unknown_name

if TYPE_CHECKING:
    from robustgen.perturb import Attack
    from robustgen.threat import ThreatModel


class Entry(NamedTuple):
    """Where an attack's class is (``module:Class``, imported when it is built), and what it does."""

    target: str
    summary: str


ATTACKS: dict[str, Entry] = {
    "pgd": Entry("pgd:PGD", "projected gradient descent with restarts, linf and l2; seeded by sample"),
    "autoattack": Entry(
        "autoattack:AutoAttack", "the cascade apgd-ce, apgd-t, fab-t, square; linf, l2 and l1"
    ),
    "autoattack-plus": Entry(
        "autoattack:AutoAttackPlus", "apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t; 5 restarts"
    ),
    "autoattack-rand": Entry(
        "autoattack:AutoAttackRand", "for stochastic models: apgd-ce, apgd-dlr on means"
    ),
    "joint-adaptive": Entry(
        "joint:JointAdaptive", "autoattack, then attacks that see through masked gradients"
    ),
    "apgd-ce": Entry("autoattack:ApgdCe", "Auto-PGD on the cross-entropy"),
    "apgd-dlr": Entry("autoattack:ApgdDlr", "Auto-PGD on the difference-of-logits ratio"),
    "apgd-t": Entry("autoattack:ApgdT", "Auto-PGD on the targeted DLR loss"),
    "fab": Entry(
        "autoattack:Fab", "the Fast Adaptive Boundary attack, which seeks the nearest wrong picture"
    ),
    "fab-t": Entry("autoattack:FabT", "the same, one class after another"),
    "noise": Entry("noise:RandomNoise", "random noise as large as eps: what no attack should be weaker than"),
    "square": Entry("autoattack:SquareAttack", "random squares, no gradients"),
}


def build(spec: AttackSpec, threat: ThreatModel) -> Attack:
    """The attack that a protocol asks for; an unknown name or option is a UserError that lists them."""
    if ".py:" in spec.attack:
        from robustgen.attacks.user_attack import UserAttack

        return UserAttack(spec.attack, threat, spec.options)
    if ":" in spec.attack:
        return outside.build(spec.attack, threat, spec.options)
    if spec.attack not in ATTACKS:
        raise unknown_name("attack", spec.attack, ATTACKS)
    module, _, name = ATTACKS[spec.attack].target.partition(":")
    attack: Attack = getattr(import_module(f"robustgen.attacks.{module}"), name)(threat, **spec.options)
    return attack


def evaluation_name(attack: Attack) -> str:
    """The evaluation's name and folder: ``<attack>-<threat>``, such as autoattack-linf-8-255.

    Every option that is not at its default is in it by a letter and its value, as in
    autoattack-q500-linf-0.15: a smaller budget never goes by the reference's name.
    """
    return f"{attack.name}-{attack.threat.slug}"
