"""Numbers from stored rows: estimates with 95 % intervals, paired tests, and doubts.

Nothing here asks a model anything. ``rows`` reads what is stored; ``intervals``, ``calibration``,
``ood`` and ``denoising`` are the formulas; ``measured`` goes through a run; ``comparisons`` tests
models against each other; ``doubts`` writes the flags.
"""

from robustgen.metrics.comparisons import Comparison, compare
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.estimate import Estimate
from robustgen.metrics.measured import measure
from robustgen.metrics.rows import Rows, Run, read_run

__all__ = ["Comparison", "Estimate", "Rows", "Run", "compare", "find_doubts", "measure", "read_run"]
