"""Whether two objects that were kept, or would be, are the same."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RELATIVE = 1e-12
"""A FITS card holds a float to 16 digits at most, so that what was read back may differ in the last."""


def same(one: Any, other: Any) -> bool:  # noqa: ANN401 - anything that is kept
    """Whether two objects are equal: pixels and tables bit for bit (NaN is NaN), other floats to 1e-12."""
    if _is_number(one) and _is_number(other):
        return bool(np.isclose(one, other, rtol=_RELATIVE, atol=0.0, equal_nan=True))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return _same_arrays(one, other)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, list | tuple):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_arrays(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.names is not None:
        return all(_same_arrays(one[name], other[name]) for name in one.dtype.names)
    if one.dtype == np.float64 and one.ndim > 1:  # a matrix of a WCS, kept in cards
        return bool(np.allclose(one, other, rtol=_RELATIVE, atol=0.0))
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
