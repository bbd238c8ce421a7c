"""Figures of samples that have outliers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def share(flags: NDArray[Any]) -> float | None:
    """The part that is true; None of nothing."""
    return float(np.mean(flags)) if len(flags) else None


def median(values: NDArray[Any]) -> float | None:
    """The median; None of nothing."""
    return float(np.median(values)) if len(values) else None


def width(values: NDArray[Any]) -> float | None:
    """Standard deviation of the Gaussian with the same interquartile range; None of fewer than four."""
    if len(values) < 4:
        return None
    low, high = np.percentile(values, [25, 75])
    return float((high - low) / 1.349)
