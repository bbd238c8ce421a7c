"""Mask planes of other programs: bits by name (`MP_` cards), any nonzero value, or SDSS fpM tables of spans."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from backbone.fits_errors import opened, refused_by_name
from schemas.errors import BadData
from schemas.image import Mask, MaskPlane

_SDSS = {"S_MASK_INTERP": Mask.INTRP, "S_MASK_SATUR": Mask.SAT, "S_MASK_NOTCHECKED": Mask.NO_DATA, "S_MASK_CR": Mask.CR}
_PLANES = ("MASK", "DQ", "FLAGS")
_BY_NAME = {name: Mask[name] for name in ("BAD", "SAT", "INTRP", "CR", "EDGE", "NO_DATA", "SUSPECT", "STREAK")}


def read_mask(path: Path, shape: tuple[int, int]) -> MaskPlane:
    """The mask in a file, in our bits. Raises BadData, naming it, for one of another shape, or none."""
    with refused_by_name(path), opened(path) as hdus:
        if _is_sdss(hdus):
            return _of_spans(hdus, shape)
        plane = next((hdu for hdu in hdus if hdu.name in _PLANES and hdu.data is not None), None)
        plane = plane or next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
        if plane is None:
            raise BadData("it holds no mask")
        return of_plane(plane, shape)


def of_plane(hdu: fits.ImageHDU, shape: tuple[int, int]) -> MaskPlane:
    """An image extension's bits as ours: by the names of its `MP_` cards if it has any, else nonzero is BAD."""
    if hdu.data.shape != shape or hdu.data.dtype.kind not in "iub":
        raise BadData(f"the mask is {hdu.data.dtype} {hdu.data.shape}, the image {shape}")
    named = {name[3:]: int(bit) for name, bit in hdu.header.items() if name.startswith("MP_")}
    if not named:
        return np.where(hdu.data != 0, np.uint16(Mask.BAD), np.uint16(0))
    mask = np.zeros(shape, np.uint16)
    for name, bit in named.items():
        if name in _BY_NAME:
            if not 0 <= bit < 8 * hdu.data.dtype.itemsize:
                raise BadData(f"MP_{name} is {bit}, no bit of {hdu.data.dtype}")
            mask[(hdu.data >> bit) & 1 != 0] |= np.uint16(_BY_NAME[name])
    return mask


def _is_sdss(hdus: fits.HDUList) -> bool:
    last = hdus[-1]
    return isinstance(last, fits.BinTableHDU) and "attributeName" in last.columns.names


def _of_spans(hdus: fits.HDUList, shape: tuple[int, int]) -> MaskPlane:
    """An fpM file: an extension a kind, named in the last one; rows of spans (row, first and last column)."""
    mask = np.zeros(shape, np.uint16)
    for row in hdus[-1].data:
        bit = _SDSS.get(str(row["attributeName"]).strip(), 0)
        table = hdus[int(row["Value"]) + 1].data if bit else None
        for packed in [] if table is None else table["s"]:
            for y, first, last in np.asarray(packed, np.uint8).view(">u2").reshape(-1, 3):
                if not (y < shape[0] and first <= last < shape[1]):
                    raise BadData(f"a span of row {y}, columns {first} to {last}, for an image {shape}")
                mask[y, first : last + 1] |= np.uint16(bit)
    return mask
