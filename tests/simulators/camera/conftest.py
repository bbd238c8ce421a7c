from collections.abc import Callable
from time import monotonic

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.image import Calibration, Image, Observation
from schemas.instrument import Detector, camera
from schemas.pointing import nominal_wcs
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.products import calibration
from simulators.camera.sensor import Segments
from simulators.sky.sources import SKY_SOURCE_DTYPE, Kind

SEED = 5
STARTED = 1_783_216_800.0
SCIENCE = 94


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = monotonic() + 10.0
    while not holds():
        assert monotonic() < deadline


class FixedSky:
    """A few hundred sources of every kind on detector 94, and a star of 9th magnitude."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        self.rows = rows

    def sources(self, ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> NDArray[np.void]:
        assert band in "ugrizy"
        assert mjd_tai > 60000.0
        near = np.hypot((self.rows["ra"] - ra) * np.cos(np.radians(dec)), self.rows["dec"] - dec) < radius_deg
        found: NDArray[np.void] = self.rows[near]
        return found


def nanojansky(mag: float) -> float:
    return float(10.0 ** ((31.4 - mag) / 2.5))


def rows_at(
    observation: Observation, detector: Detector, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.void]:
    """Point sources of no flux at nominal pixels."""
    rows = np.zeros(len(x), SKY_SOURCE_DTYPE)
    nominal = nominal_wcs(detector, observation.ra, observation.dec, observation.rotation)
    rows["ra"], rows["dec"] = nominal.pixel_to_sky(x, y)
    rows["id"], rows["axis_ratio"] = np.arange(len(x)) + 1, 1.0
    return rows


def exposed(
    snap: int = 0, *, instrument: str = "LSSTCam", physical_filter: str = "r_57", visit: int = 2026070500004
) -> Observation:
    started = STARTED + 17.0 * snap
    return Observation(
        instrument=instrument, group="g", visit=visit, exposure=visit + snap, snap=snap, n_snaps=2,
        image_name=f"MC_O_20260705_{visit % 100000 + snap:06d}", physical_filter=physical_filter,
        band=physical_filter[0], ra=250.0, dec=-20.0, rotation=30.0, exposure_time=15.0, started=started,
        readout_ended=started + 17.0,
    )  # fmt: skip


def recipe_of(observation: Observation) -> Recipe:
    return Recipe(observation, STARTED + 7.5)


@pytest.fixture(scope="session")
def sky() -> FixedSky:
    rng = np.random.default_rng(0)
    detector = camera("LSSTCam")[SCIENCE]
    rows = rows_at(exposed(), detector, rng.uniform(50, 4040, 500), rng.uniform(50, 3950, 500))
    mag = rng.uniform(17.5, 24.0, 500)
    rows["flux"] = rows["template_flux"] = 10.0 ** ((31.4 - mag) / 2.5)
    rows["kind"][200:350], rows["radius"][200:350] = Kind.GALAXY, rng.uniform(0.2, 2.5, 150)
    rows["axis_ratio"][200:350], rows["angle"][200:350] = rng.uniform(0.2, 1.0, 150), rng.uniform(0, 180, 150)
    rows["kind"][350:400], rows["template_flux"][350:400] = Kind.TRANSIENT, 0.0
    rows["kind"][400:402], rows["template_flux"][400:402] = Kind.ASTEROID, 0.0
    rows["rate_ra"][400:402], rows["rate_dec"][400:402] = (0.3, -0.01), (0.1, 0.005)
    rows["flux"][400:402] = nanojansky(19.0)
    rows["flux"][402] = rows["template_flux"][402] = nanojansky(9.0)
    return FixedSky(rows)


@pytest.fixture(scope="session")
def plane(sky: FixedSky) -> FocalPlane:
    return FocalPlane(SEED, "LSSTCam", sky, fields=3)


@pytest.fixture(scope="session")
def charge(plane: FocalPlane) -> Image:
    return plane.charge(recipe_of(exposed()), SCIENCE)


@pytest.fixture(scope="session")
def raw(plane: FocalPlane, charge: Image) -> Segments:
    return plane.segments(recipe_of(exposed()), SCIENCE, charge)


@pytest.fixture(scope="session")
def master() -> Calibration:
    return calibration(SEED, camera("LSSTCam"), SCIENCE, "r")


def remove_signature(raw: Segments, detector: Detector, master: Calibration, seconds: float) -> Image:
    """A plain ISR: overscan, gain, crosstalk, assembly, bias, linearity, dark, flat; electrons."""
    form = detector.format
    data = slice(form.prescan, form.prescan + form.amp_width)
    level = np.median(raw[:, :, form.prescan + form.amp_width + 4 :], axis=2, keepdims=True)
    signal = (raw - level) * master.gain[:, None, None]
    signal = signal - np.einsum("ij,jrc->irc", master.crosstalk, signal)
    image = np.empty((form.height, form.width), np.float32)
    for amp in detector.amplifiers:
        segment = signal[amp.index, : form.amp_height, data]
        part = segment[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        image[amp.y0 : amp.y0 + form.amp_height, amp.x0 : amp.x0 + form.amp_width] = part
    image -= master.bias
    for amp in detector.amplifiers:
        part = image[amp.y0 : amp.y0 + form.amp_height, amp.x0 : amp.x0 + form.amp_width]
        part *= 1.0 + sum(c * (part / 1e5) ** (k + 1) for k, c in enumerate(master.linearity[amp.index]))
    undone = (image - master.dark * np.float32(seconds)) / master.flat
    return undone.astype(np.float32)
