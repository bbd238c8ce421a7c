"""Products of batch work as FITS: any frozen dataclass of arrays, numbers and tuples, each array an extension.

An array lies in the extension of its field's name, that of a nested dataclass in OUTER.INNER, big-endian and with its
DATASUM. All else is JSON in the primary header's PRODUCT. Which class a file is of is not said in it: the Data Butler's
storage class does.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from pydantic import TypeAdapter

from backbone.fits_errors import opened, refused_by_name, written_or_transient
from backbone.masked_fits import Cards, header_of, plane
from schemas.errors import BadData

Product = TypeVar("Product")
Array = NDArray[Any]

_JSON, _BOOL = "PRODUCT", np.int16
_KEPT = ("f4", "f8", "i2", "i4", "i8", "u2")


def write_product(path: Path, product: object, cards: Cards) -> None:
    """Write a product; `cards`: for the primary header. Raises BadData for an array of a type that FITS has not."""
    arrays = dict(_arrays(product, ""))
    primary = header_of(cards)
    primary[_JSON] = json.dumps(dict(_rest(product, "")))
    hdus = [fits.PrimaryHDU(header=primary)]
    hdus += [fits.ImageHDU(_stored(path, name, array), name=name) for name, array in arrays.items()]
    with written_or_transient(path):
        fits.HDUList(hdus).writeto(path, overwrite=True, checksum=True)


def read_product(path: Path, kind: type[Product]) -> Product:
    """The product in a file, every array checked. Raises BadData, naming the file, as `backbone.masked_fits` does."""
    with refused_by_name(path), opened(path, do_not_scale_image_data=True) as hdus:
        arrays = {hdu.name: plane(hdus, hdu.name) for hdu in hdus[1:]}
        return _rebuilt(kind, arrays, json.loads(hdus[0].header[_JSON]), "")


def _arrays(product: object, prefix: str) -> Iterator[tuple[str, Array]]:
    for name, value in _members(product, prefix):
        if isinstance(value, np.ndarray):
            yield name, value
        elif is_dataclass(value):
            yield from _arrays(value, f"{name}.")


def _rest(product: object, prefix: str) -> Iterator[tuple[str, object]]:
    """What is no array, ready for JSON."""
    for name, value in _members(product, prefix):
        if is_dataclass(value):
            yield from _rest(value, f"{name}.")
        elif not isinstance(value, np.ndarray):
            yield name, [_plain(part) for part in value] if isinstance(value, tuple) else value


def _members(product: object, prefix: str) -> Iterator[tuple[str, object]]:
    for field in fields(product):  # type: ignore[arg-type] # a dataclass, by the storage classes
        yield f"{prefix}{field.name}".upper(), getattr(product, field.name)


def _plain(part: object) -> object:
    return asdict(part) if is_dataclass(part) and not isinstance(part, type) else part


def _stored(path: Path, name: str, array: Array) -> Array:
    if array.dtype == np.bool_:
        return array.astype(_BOOL)
    if array.dtype.str[1:] not in _KEPT:
        raise BadData(f"{path.name}: {name} is {array.dtype}, which FITS has not")
    return array


def _rebuilt(kind: type[Product], arrays: dict[str, Array], rest: dict[str, object], prefix: str) -> Product:
    values: dict[str, object] = {}
    for name, hint in get_type_hints(kind).items():
        key = f"{prefix}{name}".upper()
        if key in arrays:
            values[name] = arrays[key].astype(np.bool_) if np.bool_ in _scalars(hint) else arrays[key]
        elif is_dataclass(hint):
            values[name] = _rebuilt(hint, arrays, rest, f"{key}.")  # type: ignore[arg-type]
        else:
            values[name] = TypeAdapter(hint).validate_python(rest[key])
    return kind(**values)


def _scalars(hint: object) -> tuple[object, ...]:
    """The element types that an array's annotation names."""
    args = getattr(hint, "__args__", ())
    return tuple(inner for arg in args for inner in (arg, *_scalars(arg)))
