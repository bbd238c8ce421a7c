"""Whether two objects that were kept, or would be, are the same."""

from dataclasses import fields, is_dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

_RELATIVE = 1e-12
"""A FITS card holds a float to 16 digits at most, so that what was read back may differ in the last."""


def same(one: object, other: object) -> bool:
    """Whether two objects are equal: pixels and tables bit for bit (NaN equals NaN), other floats to 1e-12."""
    if type(one) is not type(other) and not (_is_number(one) and _is_number(other)):
        return False
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, np.ndarray):
        return _same_arrays(one, cast(NDArray[np.generic], other))
    if isinstance(one, dict):
        theirs = cast(dict[object, object], other)
        return one.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        pairs = cast(tuple[object, ...], other)
        return len(one) == len(pairs) and all(map(same, one, pairs))
    if isinstance(one, float):
        return bool(np.isclose(one, cast(float, other), rtol=_RELATIVE, atol=0.0, equal_nan=True))
    return one == other


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_arrays(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.names is not None:
        return all(_same_arrays(one[name], other[name]) for name in one.dtype.names)
    if one.dtype == np.float64 and one.ndim > 1:  # a matrix of a WCS, kept in cards
        return bool(np.allclose(one, other, rtol=_RELATIVE, atol=1e-300))
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
