"""The attacks of the outside libraries and their norms: torchattacks 3.5.1, foolbox 3.3.4.

Written out, so that names can be listed and checked without importing the packages.
"""

from __future__ import annotations

from typing import get_args

from robustgen.types import Norm

SUPPORTED_NORMS = frozenset(get_args(Norm))

Norms = tuple[str, ...]


def _each(norms: Norms, names: str) -> dict[str, Norms]:
    return dict.fromkeys(names.split(), norms)


# From the "Distance Measure" in the docstring of each class; FAB's code fails in L1.
TORCHATTACKS = {
    **_each(
        ("linf",),
        """BIM DIFGSM EOTPGD FFGSM FGSM Jitter MIFGSM NIFGSM PGD PGDRS PIFGSM PIFGSMPP RFGSM SINIFGSM SPSA
        TIFGSM TPGD UPGD VMIFGSM VNIFGSM""",
    ),
    **_each(("linf", "l2"), "APGD APGDT AutoAttack FAB Square"),
    **_each(("l2",), "CW DeepFool PGDL2 PGDRSL2"),
    **_each(("l2", "l1"), "EADEN"),
    **_each(("l1",), "EADL1"),
    **_each(("l0",), "JSMA OnePixel Pixle SparseFool"),
}

# From the distance attribute of each class; those that take it as a parameter support every norm.
FOOLBOX = {
    **_each(
        ("linf",),
        """AdamPGD FGSM LInfFMNAttack LinfAdamBasicIterativeAttack LinfAdamPGD
        LinfAdamProjectedGradientDescentAttack LinfAdditiveUniformNoiseAttack LinfBasicIterativeAttack
        LinfDeepFoolAttack LinfFastGradientAttack LinfMomentumIterativeFastGradientMethod LinfPGD
        LinfProjectedGradientDescentAttack LinfRepeatedAdditiveUniformNoiseAttack
        LinfinityBrendelBethgeAttack MIFGSM PGD""",
    ),
    **_each(
        ("l2",),
        """BoundaryAttack DDNAttack FGM L2AdamBasicIterativeAttack L2AdamPGD
        L2AdamProjectedGradientDescentAttack L2AdditiveGaussianNoiseAttack L2AdditiveUniformNoiseAttack
        L2BasicIterativeAttack L2BrendelBethgeAttack L2CarliniWagnerAttack
        L2ClippingAwareAdditiveGaussianNoiseAttack L2ClippingAwareAdditiveUniformNoiseAttack
        L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack L2ClippingAwareRepeatedAdditiveUniformNoiseAttack
        L2ContrastReductionAttack L2DeepFoolAttack L2FMNAttack L2FastGradientAttack
        L2MomentumIterativeFastGradientMethod L2PGD L2ProjectedGradientDescentAttack
        L2RepeatedAdditiveGaussianNoiseAttack L2RepeatedAdditiveUniformNoiseAttack NewtonFoolAttack
        SaltAndPepperNoiseAttack VirtualAdversarialAttack""",
    ),
    **_each(
        ("l1",),
        """EADAttack L1AdamBasicIterativeAttack L1AdamPGD L1AdamProjectedGradientDescentAttack
        L1BasicIterativeAttack L1BrendelBethgeAttack L1FMNAttack L1FastGradientAttack
        L1MomentumIterativeFastGradientMethod L1PGD L1ProjectedGradientDescentAttack
        SparseL1DescentAttack""",
    ),
    **_each(("linf", "l2"), "HopSkipJumpAttack"),
    **_each(
        ("linf", "l2", "l1"),
        """BinarySearchContrastReductionAttack GaussianBlurAttack InversionAttack
        LinearSearchBlendedUniformNoiseAttack LinearSearchContrastReductionAttack""",
    ),
    **_each(("l0",), "L0BrendelBethgeAttack L0FMNAttack"),
}

NORMS: dict[str, dict[str, Norms]] = {
    "pyautoattack": _each(("linf", "l2", "l1"), "standard apgd-ce apgd-t fab-t square"),
    "torchattacks": TORCHATTACKS,
    "foolbox": FOOLBOX,
}

REFUSED: dict[str, dict[str, str]] = {
    "pyautoattack": {},
    "torchattacks": {
        "GN": "it adds noise without a bound",
        "VANILA": "it returns the image unchanged",
        "LGV": "it trains the model further",
        "MultiAttack": "it wraps other attacks; name them one by one",
    },
    "foolbox": {
        "BinarizationRefinementAttack": "it refines what another attack has found",
        "DatasetAttack": "it needs a set of images to choose from",
        "GenAttack": "it needs a target class",
        "PointwiseAttack": "its distance cannot be set",
        "SpatialAttack": "it rotates and shifts images, which no norm bounds",
    },
}
