"""Numbers from stored rows: estimates with 95 % intervals, paired tests, and doubts.

Nothing here asks a model anything. ``rows`` reads what is stored; ``intervals``, ``calibration``,
``ood`` and ``denoising`` are the formulas; ``measured`` goes through a run; ``comparisons`` tests
models against each other; ``doubts`` writes the flags.
"""
