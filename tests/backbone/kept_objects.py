"""Objects to keep: each of the kinds that the archive knows, at full size where the camera fixes it."""

import hashlib
from functools import lru_cache

import numpy as np

from schemas.identity import DatasetId, exposure_id, image_name
from schemas.image import Calibration, MaskedImage, Observation, Psf, Raw, Template
from schemas.instrument import camera
from schemas.skymap import PATCH_PIXELS, Tract

DAY_OBS = 20260705
E2V_DETECTOR, ITL_DETECTOR = 94, 0


def observation(snap: int = 0, instrument: str = "LSSTCam") -> Observation:
    exposure = exposure_id(DAY_OBS, 4 + snap)
    return Observation(
        instrument=instrument,
        group="2026-07-06T01:02:03.456",
        visit=exposure - snap,
        exposure=exposure,
        snap=snap,
        n_snaps=2,
        image_name=image_name(DAY_OBS, 4 + snap),
        physical_filter="r_57",
        band="r",
        ra=150.12345678901234,
        dec=2.2000000000000006,
        rotation=33.3,
        exposure_time=15.0,
        started=1783300923.1234567 + 17 * snap,
        readout_ended=1783300940.75 + 17 * snap,
        survey="BLOCK-407",
    )


def sha256(segments: np.ndarray) -> str:
    return hashlib.sha256(segments.tobytes()).hexdigest()


@lru_cache(maxsize=8)
def raw(seed: int = 1, detector: int = E2V_DETECTOR, snap: int = 0, instrument: str = "LSSTCam") -> Raw:
    shape = camera(instrument)[detector].format.raw_shape
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    segments = (1600.0 + 25.0 * noise).astype(np.int32)
    segments.flags.writeable = False
    return Raw(observation(snap, instrument), detector, segments, sha256(segments))


def raw_id(detector: int = E2V_DETECTOR, snap: int = 0) -> DatasetId:
    exposure = observation(snap).exposure
    return DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=exposure, detector=detector)


def visit_id(dataset_type: str, detector: int = E2V_DETECTOR) -> DatasetId:
    visit = observation().visit
    return DatasetId(dataset_type=dataset_type, instrument="LSSTCam", visit=visit, detector=detector)


def calibration(seed: int = 1, shape: tuple[int, int] = (401, 515)) -> Calibration:
    rng = np.random.default_rng(seed)
    bias, dark, flat = (rng.standard_normal(shape, np.float32) for _ in range(3))
    defects = rng.integers(0, 1 << 16, shape).astype(np.uint16)
    gain, read_noise, saturation = (rng.random(16, np.float32) for _ in range(3))
    crosstalk, linearity = (rng.random((16, columns), np.float32) for columns in (16, 3))
    return Calibration(bias, dark, flat, defects, gain, read_noise, saturation, crosstalk, linearity)


def calibration_id(detector: int = E2V_DETECTOR) -> DatasetId:
    return DatasetId(dataset_type="calibration", instrument="LSSTCam", detector=detector, physical_filter="r_57")


def gaussian(sigma: float, size: int = 21) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = np.exp(-(x**2 + y**2) / (2.0 * sigma**2))
    return (kernel / kernel.sum()).astype(np.float32)


def template_patch(tract: Tract, patch: int, sigma: float = 2.0) -> Template:
    """Pixels that say where they are: image = row, variance = column, mask = patch, in the tract's grid."""
    box = tract.patch_box(patch)
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1]
    mask = np.full((PATCH_PIXELS, PATCH_PIXELS), patch, np.uint16)
    broad = gaussian(sigma + 0.5) - gaussian(sigma)
    psf = Psf(np.stack([gaussian(sigma), 0.0 * broad, 0.1 * broad]), 1, (PATCH_PIXELS, PATCH_PIXELS))
    pixels = MaskedImage(y.astype(np.float32), mask, x.astype(np.float32))
    return Template(pixels, tract.wcs.shifted(box.x0, box.y0), psf, "r")


def patch_id(tract: Tract, patch: int) -> DatasetId:
    return DatasetId(dataset_type="template_patch", tract=tract.id, patch=patch, band="r")


def flip_a_bit(data: bytearray, at: int) -> None:
    data[at] ^= 0x10
