"""An alert that is too large for a broker, with smaller cutouts: half as wide at each step, then none."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import fastavro
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from payloads.alert_production.alert_schema import alert_schema
from payloads.alert_production.lite import CUTOUTS, field_ends
from schemas.errors import BadData

SMALLEST = 26
"""Pixels a side, below which cutouts are left out: 26 x 26 of four bytes fill the 2880 bytes of one block of a FITS
file, and fewer pixels make no smaller file."""

_PSF = "PSFIMAGE"
_UNION = fastavro.parse_schema(["null", "bytes"])


class Reduced(NamedTuple):
    """A packet, and how many pixels a side its largest cutout has; 0: none has any."""

    packet: bytes
    size: int


def reduced(packet: bytes) -> Reduced | None:
    """The alert with cutouts half as large, about the same source, of `SMALLEST` pixels at least; then with none.

    None if it has no cutouts: it cannot be made smaller. All else is as it was, byte for byte, and the same packet
    gives the same bytes. Of each cutout image, variance and mask are cropped; its PSF is kept whole. Raises BadData
    for what is no alert of the schema, or has a cutout that is no FITS file of images.
    """
    ends = field_ends(packet)
    places = [k for k, field in enumerate(alert_schema()["fields"]) if field["name"] in CUTOUTS]
    fields = {k: _read(packet[ends[k] : ends[k + 1]]) for k in places}
    largest = max((_side(file) for file in fields.values() if file is not None), default=0)
    if not largest:
        return None
    size = max(SMALLEST, largest // 2) if largest > SMALLEST else 0
    parts = [
        _write(_cropped(fields[k], size)) if k in fields else packet[ends[k] : ends[k + 1]]
        for k in range(len(ends) - 1)
    ]
    return Reduced(b"".join(parts), size)


def _read(field: bytes) -> bytes | None:
    return cast("bytes | None", fastavro.schemaless_reader(io.BytesIO(field), _UNION, None))


def _write(file: bytes | None) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _UNION, file)
    return out.getvalue()


def _side(file: bytes) -> int:
    with _opened(file) as hdus:
        ny, nx = hdus[0].shape
        return max(int(ny), int(nx))


def _cropped(file: bytes | None, size: int) -> bytes | None:
    """The middle `size` pixels of each axis: pixel k // 2 of k becomes size // 2. Nothing, for a size of 0."""
    if file is None or size == 0:
        return None
    with _opened(file) as hdus:
        (ny, nx), header = hdus[0].shape, hdus[0].header
        y0, x0 = (max(0, n // 2 - size // 2) for n in (ny, nx))
        for hdu in hdus:
            if hdu.name != _PSF and hdu.shape == (ny, nx):
                hdu.data = hdu.data[y0 : y0 + size, x0 : x0 + size]
        for key, offset in (("CRPIX1", x0), ("CRPIX2", y0)):
            if key in header:
                header[key] -= offset
        out = io.BytesIO()
        hdus.writeto(out)
        return out.getvalue()


@contextmanager
def _opened(file: bytes) -> Iterator[fits.HDUList]:
    try:
        with warnings.catch_warnings(), fits.open(io.BytesIO(file), memmap=False) as hdus:
            warnings.simplefilter("error", AstropyWarning)  # what astropy mends, as a file cut short, is not ours
            yield hdus
    except (OSError, ValueError, TypeError, AstropyWarning) as error:
        raise BadData(f"a cutout of {len(file)} bytes cannot be cropped: {error}") from error
