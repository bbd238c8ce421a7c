"""The sky as a pure function of seed, position, time and band; nothing is stored."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from schemas.errors import BadData
from schemas.instrument import BANDS
from schemas.tables import REFCAT_DTYPE, Table
from simulators.sky.asteroids import Asteroids
from simulators.sky.cells import cells_within, within
from simulators.sky.galaxies import galaxies_of, observe_galaxies
from simulators.sky.population import known_orbits
from simulators.sky.refcat import refcat_of
from simulators.sky.stars import observe_stars, stars_of
from simulators.sky.transients import blocks_in_sight, observe_transients, transients_of
from simulators.sky.variables import observe_variables, variables_of

# How far proper motions over decades and offsets from hosts can bring a source out of its cell.
_PAD_DEG = 30.0 / 3600.0


class Sky:
    """One sky. The same seed gives the same sky in every process, whatever was asked before.

    (As long as NumPy's and HEALPix's algorithms stay: a pinned NumPy gives bit for bit the same.)
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise BadData(f"the seed of a sky is not negative: {seed}")
        self.seed = seed

    def sources(self, ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> Table:
        """Everything (SKY_SOURCE_DTYPE) within a circle (deg, ICRS) at a time (MJD TAI) in a band.

        Raises BadData for a position, radius, band or time that is none.
        """
        _check(ra, dec, radius_deg)
        _check_view(band, mjd_tai)
        cells = cells_within(ra, dec, radius_deg + _PAD_DEG)
        near = [
            observe_stars(self._near(stars_of, cells, ra, dec, radius_deg), band, mjd_tai),
            observe_galaxies(self._near(galaxies_of, cells, ra, dec, radius_deg), band),
            observe_variables(self._near(variables_of, cells, ra, dec, radius_deg), band, mjd_tai),
            observe_transients(self._transients(cells, mjd_tai), band, mjd_tai),
        ]
        constant = within(np.concatenate(near), ra, dec, radius_deg)
        return np.concatenate([constant, self.asteroids(ra, dec, radius_deg, band, mjd_tai)])

    def asteroids(self, ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> Table:
        """The minor planets (SKY_SOURCE_DTYPE) of a circle at a time in a band, seen from the observatory.

        Raises BadData as `sources` does.
        """
        _check(ra, dec, radius_deg)
        _check_view(band, mjd_tai)
        return self._asteroids.within(ra, dec, radius_deg, band, mjd_tai)

    def refcat(self, ra: float, dec: float, radius_deg: float) -> Table:
        """Reference stars (REFCAT_DTYPE), r 14 to 22.5, within a circle (deg), for J2016.0.

        The variable ones are flagged and have their mean fluxes. Raises BadData for a position or radius that
        is none.
        """
        _check(ra, dec, radius_deg)
        rows = [refcat_of(self.seed, cell) for cell in cells_within(ra, dec, radius_deg + _PAD_DEG)]
        return within(np.concatenate(rows), ra, dec, radius_deg).astype(REFCAT_DTYPE)

    def orbits(self) -> Table:
        """`mpc_orbits` rows of the bodies that are known already, four in five, exact; see `known_orbits`.

        `id` - 1 is the body's number in the low bits of its source id. Half a million rows take 350 MB.
        """
        return known_orbits(self._asteroids.bodies)

    @cached_property
    def _asteroids(self) -> Asteroids:
        return Asteroids(self.seed)

    def _near(
        self, of_cell: Callable[[int, int], Table], cells: list[int], ra: float, dec: float, radius_deg: float
    ) -> Table:
        """What cells hold in and just outside a circle."""
        rows = np.concatenate([of_cell(self.seed, cell) for cell in cells])
        return within(rows, ra, dec, radius_deg + _PAD_DEG)

    def _transients(self, cells: list[int], mjd_tai: float) -> Table:
        blocks = blocks_in_sight(mjd_tai)
        return np.concatenate([transients_of(self.seed, cell, block) for cell in cells for block in blocks])


def _check(ra: float, dec: float, radius_deg: float) -> None:
    if not (np.isfinite(ra) and -90.0 <= dec <= 90.0):
        raise BadData(f"no position: ra {ra}, dec {dec} deg")
    if not 0.0 < radius_deg <= 10.0:
        raise BadData(f"a field's radius is above 0 and at most 10 deg, not {radius_deg}")


def _check_view(band: str, mjd_tai: float) -> None:
    if band not in BANDS:
        raise BadData(f"no band {band!r} (there are {', '.join(BANDS)})")
    if not 0.0 <= mjd_tai < 1e8:
        raise BadData(f"no time: MJD {mjd_tai}")
