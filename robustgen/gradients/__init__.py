"""Readouts of class gradients: how well they guide a denoiser, and what they tell about an attack.

``guidance``: by how much grad log p(label | noisy image) improves a reference denoiser; ``sweep``: the same
over many noise levels, with the cross-entropy; ``explained``: the nearest adversarial image, in terms of
the reference's class-conditional denoisers and of the model's gradients.
"""

from robustgen.gradients.explained import Explained
from robustgen.gradients.guidance import Guidance, class_gradient, schema
from robustgen.gradients.sweep import Sweep

__all__ = ["Explained", "Guidance", "Sweep", "class_gradient", "schema"]
