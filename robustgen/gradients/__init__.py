"""Readouts of class gradients: what they are worth, and what they say of an attack.

``guidance``: what grad log p(label | noisy picture) adds to a reference denoiser; ``sweep``: the same
over many noise levels, beside the cross-entropy; ``explained``: the nearest wrong picture, in terms of
the reference's class-conditional denoisers and of the model's gradients.
"""

from robustgen.gradients.explained import Explained
from robustgen.gradients.guidance import Guidance, class_gradient, schema
from robustgen.gradients.sweep import Sweep

__all__ = ["Explained", "Guidance", "Sweep", "class_gradient", "schema"]
