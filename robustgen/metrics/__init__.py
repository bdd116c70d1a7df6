"""Metrics, paired tests and flags, computed from stored rows alone: no module here calls a model.

``rows`` reads a run. The formulas are in ``intervals``, ``verdicts``, ``calibration``, ``consistency``,
``selective``, ``ood``, ``denoising`` and ``gradient_statistics``; ``measure`` applies them to a run through
the ``*_estimates`` modules. ``comparisons`` tests models against each other, and ``doubts`` collects the
flags of the ``*_doubts`` modules.
"""
