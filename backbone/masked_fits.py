"""Planes of pixels as FITS: calibrations and template patches, one image extension a plane, uncompressed.

Files are read at memory speed: a plane is mapped, and turned from big-endian in the one pass that copies it
out. A whole read checks each plane against its DATASUM (FITS 4.0, section 4.4.2.7); a read of a box, which
touches only some rows, cannot. The PSF model lies in the extension PSF, terms by rows by columns, with its
order and domain as keywords.

Errors: BadData, naming the file, for one that is absent, short, damaged or lacks a plane; Transient if the
disk fails.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from backbone.fits_errors import opened, refused_by_name, written_or_transient
from backbone.psf_model import psf_in_box
from schemas.errors import BadData
from schemas.image import Calibration, Inputs, MaskedImage, Psf, Template
from schemas.skymap import Box
from schemas.wcs import Wcs

Cards = Mapping[str, str | float | int]
Plane = NDArray[np.float32] | NDArray[np.uint16]
_CALIBRATION = tuple(field.name for field in fields(Calibration))
_MASKED = ("image", "mask", "variance")
_BITS = ("mask", "defects", "taken")
_VISITS = "VISITS"
_KEYWORD_LENGTH = 8
_MODULUS = (1 << 32) - 1


def write_calibration(path: Path, calibration: Calibration, cards: Cards) -> None:
    """Write a calibration; `cards`: for the primary header. Raises BadData for a plane of a wrong kind."""
    planes = {name: getattr(calibration, name) for name in _CALIBRATION}
    _check(path, planes, of_one_shape=("bias", "dark", "flat", "defects"))
    _write(path, cards, planes, {})


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file, every plane checked; one written before linearity was kept is linear."""
    with refused_by_name(path), opened(path, do_not_scale_image_data=True) as hdus:
        planes = {name: plane(hdus, name) for name in _CALIBRATION if name != "linearity" or "LINEARITY" in hdus}
        return Calibration(**planes)


def write_template(path: Path, template: Template, cards: Cards) -> None:
    """Write a template; `cards`: for the primary header. Raises BadData for a plane of a wrong kind."""
    planes = {name: getattr(template.pixels, name) for name in _MASKED} | {"psf": template.psf.components}
    psf = {"ORDER": template.psf.order, "NY": template.psf.shape[0], "NX": template.psf.shape[1]}
    wcs = template.wcs.to_header() | {"BUNIT": "nJy"}
    primary: dict[str, str | float | int] = {**cards, "FILTBAND": template.band}
    if template.inputs:
        primary[_VISITS] = ",".join(map(str, template.inputs.visits))
        planes |= {"weight": template.inputs.weight, "taken": template.inputs.taken}
    _check(path, planes, of_one_shape=_MASKED)
    _write(path, primary, planes, {"image": wcs, "mask": wcs, "variance": wcs | {"BUNIT": "nJy2"}, "psf": psf})


def read_template(path: Path, box: Box | None = None) -> Template:
    """The template in a file, every plane checked; or its part in `box` (pixels of the file), not checked.

    WCS and PSF are those of what is returned. Raises BadData if `box` reaches beyond the image.
    """
    with refused_by_name(path), opened(path, do_not_scale_image_data=True) as hdus:
        pixels = MaskedImage(*(plane(hdus, name, box) for name in _MASKED))
        wcs = Wcs.from_header(dict(hdus["IMAGE"].header))
        cards = hdus["PSF"].header
        psf = Psf(plane(hdus, "psf"), cards["ORDER"], (cards["NY"], cards["NX"]))
        band = str(hdus[0].header["FILTBAND"])
        if box is None:
            return Template(pixels, wcs, psf, band, _inputs(hdus))
    return Template(pixels, wcs.shifted(box.x0, box.y0), psf_in_box(psf, box), band)


def inputs_of_template(path: Path) -> Inputs | None:
    """`Template.inputs` of a file. Raises as `read_template` does."""
    with refused_by_name(path), opened(path, do_not_scale_image_data=True) as hdus:
        return _inputs(hdus)


def _inputs(hdus: fits.HDUList) -> Inputs | None:
    if "WEIGHT" not in hdus:  # nor had those that told their visits' numbers alone
        return None
    visits = tuple(map(int, str(hdus[0].header[_VISITS]).split(",")))
    return Inputs(visits, plane(hdus, "weight"), plane(hdus, "taken"))


def _check(path: Path, planes: Mapping[str, Plane], *, of_one_shape: tuple[str, ...]) -> None:
    for name, plane in planes.items():
        dtype = np.uint16 if name in _BITS else np.float32
        if plane.dtype != dtype:
            raise BadData(f"{path.name}: {name} is {plane.dtype}, not {np.dtype(dtype)}")
        if plane.dtype == np.float32 and not np.isfinite(plane).all():
            raise BadData(f"{path.name}: {name} has values that are not finite")
    shapes = {name: planes[name].shape for name in of_one_shape}
    if len(set(shapes.values())) > 1:
        raise BadData(f"{path.name}: planes differ in shape: {shapes}")


def _write(path: Path, primary: Cards, planes: Mapping[str, Plane], cards: Mapping[str, Cards]) -> None:
    hdus = [fits.PrimaryHDU(header=header_of(primary))]
    hdus += [fits.ImageHDU(plane, header_of(cards.get(name, {})), name=name) for name, plane in planes.items()]
    with written_or_transient(path):
        fits.HDUList(hdus).writeto(path, overwrite=True, checksum=True)


def header_of(cards: Cards) -> fits.Header:
    """FITS cards; names longer than 8 get the HIERARCH convention, asked for, or astropy warns of it."""
    header = fits.Header()
    for name, value in cards.items():
        header[name if len(name) <= _KEYWORD_LENGTH and " " not in name else f"HIERARCH {name}"] = value
    return header


def plane(hdus: fits.HDUList, name: str, box: Box | None = None) -> Any:  # noqa: ANN401 - by name
    """A plane in native byte order, whole and checked, or what `box` cuts out of it."""
    hdu = hdus[name.upper()]
    stored = hdu.data
    if box is not None:
        ny, nx = stored.shape
        if not (0 <= box.x0 < box.x1 <= nx and 0 <= box.y0 < box.y1 <= ny):
            raise BadData(f"{box} is not inside {name} ({ny}, {nx})")
        stored = stored[box.y0 : box.y1, box.x0 : box.x1]
    native: Plane = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    if box is None and (_datasum(native) - int(hdu.header["DATASUM"])) % _MODULUS:
        raise BadData(f"the pixels of {name} do not have their checksum")
    if "BZERO" not in hdu.header:
        return native
    bits = native.view(np.uint16)
    return np.bitwise_xor(bits, 0x8000, out=bits)  # FITS has no unsigned integers: 32768 was taken off (BZERO)


def _datasum(plane: Plane) -> int:
    """The sum of a data unit's 32-bit words, to be taken modulo 2**32 - 1 (FITS adds in ones' complement)."""
    if plane.itemsize >= np.dtype(np.uint32).itemsize:
        return int(plane.view(np.uint32).sum(dtype=np.uint64))
    flat = plane.view(np.uint16).reshape(-1)
    return (int(flat[0::2].sum(dtype=np.uint64)) << 16) + int(flat[1::2].sum(dtype=np.uint64))
