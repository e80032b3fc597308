"""The classical baseline as evidence, on the scale of the network's."""

from __future__ import annotations

import numpy as np

from outlast.tasks.forgeries.classical import ClassicalSettings, detect
from outlast.tasks.forgeries.evidence import Evidence


def classical(image: np.ndarray, settings: ClassicalSettings) -> Evidence:
    """What speaks for a forgery in an image uint8 (H, W, 3): its score is 0.5 where evidence begins to count."""
    found = detect(image, settings)
    return Evidence(found.probability, found.score / (found.score + settings.least_evidence))
