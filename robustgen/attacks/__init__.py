"""Attacks: algorithms that search, within a threat model, for images that a model misclassifies.

The protocols that use them are in the folder attacks/ at the top level.
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
    """An attack's class as ``module:Class``, imported when the attack is built, and a summary of it."""

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
    "joint-adaptive": Entry("joint:JointAdaptive", "autoattack, then attacks for masked gradients"),
    "apgd-ce": Entry("autoattack:ApgdCe", "Auto-PGD on the cross-entropy"),
    "apgd-dlr": Entry("autoattack:ApgdDlr", "Auto-PGD on the difference-of-logits ratio"),
    "apgd-t": Entry("autoattack:ApgdT", "Auto-PGD on the targeted DLR loss"),
    "fab": Entry(
        "autoattack:Fab", "the Fast Adaptive Boundary attack, which seeks the nearest misclassified image"
    ),
    "fab-t": Entry("autoattack:FabT", "the same, targeted at one class after another"),
    "noise": Entry("noise:RandomNoise", "random noise of size eps, the baseline for every attack"),
    "square": Entry("autoattack:SquareAttack", "random search over squares, without gradients"),
}


def build(spec: AttackSpec, threat: ThreatModel) -> Attack:
    """The attack that a protocol asks for; UserError for an unknown name or option, which lists the known
    ones."""
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

    Every option that is not at its default appears in it, as a letter and the value:
    autoattack-q500-linf-0.15 is not mistaken for the reference's budget.
    """
    return f"{attack.name}-{attack.threat.slug}"
