"""A patch whose every figure is known: sources on a grid, and objects that are as wrong as they are told to be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from access.release.examine import Examined, examine, joined
from access.release.figures import band_of
from access.release.given import POSITION_DTYPE, REFERENCE_DTYPE, PatchTables, Reference, middle_of
from access.release.model import Band
from schemas import drp_tables, skymap
from schemas.clock import tai_from_mjd
from schemas.skymap import Tract
from schemas.tables import Table, nulls
from schemas.wcs import Wcs, separation_arcsec

PATCH = 210
MJD = 61230.0
ERROR = 20.0
"""nJy, of every flux of a coadd: 5 sigma is AB 26.4."""
VISIT_ERROR = 100.0
FIRST_VISIT = 2026070500001


@dataclass(frozen=True)
class SmallFrame:
    visit: int
    detector: int
    band: str
    ny: int
    nx: int
    wcs: Wcs
    midpoint: float


def nanojansky(mag: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(10.0 ** (0.4 * (31.4 - np.asarray(mag))))


def frames(tract: int, bands: str, visits: int, *, beside_px: float = 0.0, shape: int = 4000) -> list[SmallFrame]:
    """Visits of the patch, a day apart, the bands in turn, by detectors whose middles lie so far beside its own."""
    cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * 0.2 / 3600.0
    wcs = Wcs(middle_of(tract, PATCH), (shape / 2.0 + beside_px, shape / 2.0), cd)
    each = [(day, band) for day in range(visits) for band in bands]
    return [
        SmallFrame(FIRST_VISIT + n, 94, band, shape, shape, wcs, tai_from_mjd(MJD + day + 0.01 * n))
        for n, (day, band) in enumerate(each)
    ]


def sky(tract: int, kinds: Sequence[str], mags: NDArray[np.float64]) -> Table:
    """A source of each kind and magnitude, 10 arcsec from one another."""
    box, across = Tract.patch_box(PATCH), 40
    row, column = np.divmod(np.arange(len(kinds)), across)
    rows = np.zeros(len(kinds), REFERENCE_DTYPE)
    x, y = box.x0 + 24.3 + 50.0 * column, box.y0 + 24.6 + 50.0 * row
    rows["ra"], rows["dec"] = skymap.tract(tract).wcs.pixel_to_sky(x, y)
    rows["id"], rows["kind"] = 1 + np.arange(len(kinds)), kinds
    rows["flux"] = rows["mean_flux"] = nanojansky(mags)
    return rows


def objects(sources: Table, bands: str) -> Table:
    """One at every source, exact."""
    rows = nulls(drp_tables.object_dtype(), len(sources))
    rows["objectId"], rows["detect_isPrimary"] = 1000 + sources["id"], True
    rows["coord_ra"], rows["coord_dec"] = sources["ra"], sources["dec"]
    rows["refExtendedness"] = sources["kind"] == "galaxy"
    for name in (name for name in rows.dtype.names or () if "_flag" in name or "pixelFlags" in name):
        rows[name] = name[0] not in bands
    for band in bands:
        for name in ("psf", "kron"):
            rows[f"{band}_{name}Flux"], rows[f"{band}_{name}FluxErr"] = sources["mean_flux"], ERROR
    return rows


def forced(seen: Table, sources: Table, visits: Sequence[SmallFrame], rng: np.random.Generator) -> Table:
    """Each object in each visit, with the noise that its error tells."""
    made = []
    for frame in visits:
        rows = nulls(drp_tables.forced_source_dtype(), len(seen))
        rows["objectId"], rows["visit"], rows["detector"], rows["band"] = seen["objectId"], frame.visit, 94, frame.band
        rows["expMidptMJD"] = MJD + (frame.midpoint - tai_from_mjd(MJD)) / 86400.0
        rows["psfFlux"] = sources["flux"] + rng.normal(0.0, VISIT_ERROR, len(seen))
        rows["psfFluxErr"] = VISIT_ERROR
        made.append(rows)
    return np.concatenate([np.zeros(0, drp_tables.forced_source_dtype()), *made])


def positions(sources: Table, visits: Sequence[SmallFrame], mas: float, rng: np.random.Generator) -> Table:
    """Every source in every visit, with so much noise in each coordinate."""
    made = []
    for frame in visits:
        rows = np.zeros(len(sources), POSITION_DTYPE)
        rows["visit"], rows["snr"] = frame.visit, 100.0
        east, north = rng.normal(0.0, mas / 3.6e6, (2, len(sources)))
        rows["dec"] = sources["dec"] + north
        rows["ra"] = sources["ra"] + east / np.cos(np.radians(sources["dec"]))
        made.append(rows)
    return np.concatenate([np.zeros(0, POSITION_DTYPE), *made])


@dataclass(eq=False)
class SmallRelease:
    """What may be changed before it is looked at."""

    sources: Table
    objects: Table
    tract: int
    bands: str = "r"
    visits: int = 1
    forced: Table = field(default_factory=lambda: np.zeros(0, drp_tables.forced_source_dtype()))
    positions: Table = field(default_factory=lambda: np.zeros(0, POSITION_DTYPE))
    at: Callable[[Table, str, float], Table] = lambda sources, _band, _mjd: sources
    complete: bool = True
    beside_px: float = 0.0

    @property
    def frames(self) -> list[SmallFrame]:
        return frames(self.tract, self.bands, self.visits, beside_px=self.beside_px)

    @property
    def reference(self) -> Reference:
        def within(ra: float, dec: float, radius_deg: float, band: str, mjd: float) -> Table:
            rows = self.at(self.sources, band, mjd)
            return rows[separation_arcsec(rows["ra"], rows["dec"], ra, dec) <= 3600.0 * radius_deg]

        return Reference("truth", complete=self.complete, sources=within)

    @property
    def tables(self) -> PatchTables:
        return PatchTables(self.tract, PATCH, self.objects, self.forced, self.positions, 0, self.frames)

    def examined(self, *, held: bool = True) -> Examined:
        return joined([examine(self.tables, self.reference if held else None)])

    def band(self, band: str = "r", *, held: bool = True) -> Band:
        return band_of(self.examined(held=held), band)


def release(kinds: Sequence[str], mags: Sequence[float] | NDArray[np.float64], *, ra: float = 150.0, dec: float = 2.0,
            bands: str = "r", visits: int = 1, seed: int = 1) -> SmallRelease:  # fmt: skip
    """A patch that is found and measured without a fault, its visits with noise."""
    tract, rng = skymap.tract_at(ra, dec).id, np.random.default_rng(seed)
    sources = sky(tract, kinds, np.asarray(mags))
    found = objects(sources, bands)
    seen = forced(found, sources, frames(tract, bands, visits), rng)
    return SmallRelease(sources, found, tract, bands, visits, seen)


def stars(mags: Sequence[float] | NDArray[np.float64], **how: object) -> SmallRelease:
    """Of stars alone."""
    return release(["star"] * len(mags), mags, **how)  # type: ignore[arg-type] # as `release` has them
