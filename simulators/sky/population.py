"""The minor planets of a seed: half a million bodies on Kepler orbits about the Sun.

Four populations: a tenth of the main belt that LSST is expected to find, a fifth of the rest (Kurlander et
al. 2025, arXiv:2506.02487: 5.1 million in the main belt, 127,000 near-Earth, 109,000 Jupiter Trojans, 37,000
trans-Neptunian). Near the ecliptic there are about 50 per deg^2 to r = 24.4, 2 to 3 a CCD: a tenth of
nature's (Gladman et al. 2009, Icarus 202, 104: 210 per deg^2 to R = 23, 500 if their slope goes on to 24.4),
although inclinations are drawn narrower than nature's to bring the bodies together. Elements are drawn from
simple shapes that resemble each population; they are invented, and nothing perturbs the bodies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.tables import Table, empty
from simulators.sky.cells import generator
from simulators.sky.kepler import GAUSS_K
from simulators.sky.sources import Floats, Kind

EPOCH_MJD = 61200.0
"""Epoch of all elements, MJD TT (2026-06-09)."""

KNOWN = 0.8
"""The part of the bodies whose orbits are known."""

SLOPE_G = 0.15

BODY_DTYPE = np.dtype(
    [(name, "f8") for name in ("a", "e", "i", "node", "argperi", "mean_anomaly", "h")]
    + [(name, "?") for name in ("known", "red")]
)
"""au, deg (ecliptic and equinox of J2000), mag (V); red: S-like colours, else C-like; row: number."""

_MAGNITUDES = (17.0, 24.0)  # V at opposition, at the mean distance
_SLOPE = 0.30  # log10 of the cumulative number per mag of H (Gladman et al. 2009, for 15 < H < 18)
_JUPITER_AT_EPOCH = 116.6  # mean longitude, deg (Standish & Williams, approximate elements of the planets)


@dataclass(frozen=True)
class Family:
    """How a population's elements are drawn. Eccentricity and inclination (deg) are Rayleigh about 0."""

    count: int
    a: tuple[tuple[float, float, float], ...]
    """(from, to, weight) of intervals in au, uniform within each."""
    eccentricity: float
    inclination: float
    at_jupiter: bool = False


MAIN_BELT = Family(500_000, ((2.12, 2.49, 0.30), (2.51, 2.81, 0.33), (2.84, 2.94, 0.08), (2.97, 3.26, 0.29)), 0.12, 4.0)
NEAR_EARTH = Family(20_000, ((0.8, 2.5, 1.0),), 0.30, 9.0)
TROJANS = Family(20_000, ((5.10, 5.30, 1.0),), 0.06, 9.0, at_jupiter=True)
TRANS_NEPTUNIAN = Family(7_500, ((39.2, 39.7, 0.2), (42.0, 47.5, 0.8)), 0.10, 6.0)


def draw_population(seed: int) -> Table:
    """All bodies of a seed (BODY_DTYPE). Main belt first, then near-Earth, Trojans, trans-Neptunian."""
    rng = generator(seed, Kind.ASTEROID)
    families = (MAIN_BELT, NEAR_EARTH, TROJANS, TRANS_NEPTUNIAN)
    return np.concatenate([_draw(rng, family) for family in families])


def _draw(rng: np.random.Generator, family: Family) -> Table:
    n = family.count
    bodies = np.zeros(n, BODY_DTYPE)
    low, high, weight = np.array(family.a).T
    interval = rng.choice(len(weight), n, p=weight)
    bodies["a"] = rng.uniform(low[interval], high[interval])
    bodies["e"] = np.minimum(rng.rayleigh(family.eccentricity, n), 0.9)
    bodies["i"] = np.minimum(rng.rayleigh(family.inclination, n), 80.0)
    bodies["node"], bodies["argperi"], bodies["mean_anomaly"] = rng.uniform(0.0, 360.0, (3, n))
    if family.at_jupiter:
        longitude = _JUPITER_AT_EPOCH + rng.choice([-60.0, 60.0], n) + rng.normal(0.0, 12.0, n)
        bodies["mean_anomaly"] = np.mod(longitude - bodies["node"] - bodies["argperi"], 360.0)
    closest = np.maximum(bodies["a"] - 1.0, 0.3)  # au, at opposition; near-Earth bodies are met at about 0.3
    bodies["h"] = _opposition_magnitudes(rng, n) - 5.0 * np.log10(bodies["a"] * closest)
    bodies["known"], bodies["red"] = rng.random(n) < KNOWN, rng.random(n) < 0.5
    return bodies


def _opposition_magnitudes(rng: np.random.Generator, n: int) -> Floats:
    """V from 17 to 24, numbers rising tenfold in 3.3 mag."""
    bright, faint = (10.0 ** (_SLOPE * mag) for mag in _MAGNITUDES)
    magnitudes: Floats = np.log10(rng.uniform(bright, faint, n)) / _SLOPE
    return magnitudes


def known_orbits(bodies: Table) -> Table:
    """The known bodies as `mpc_orbits` rows, exact. `id`: the body's number plus 1.

    epoch_mjd: MJD TT. peri_time: of the perihelion passage nearest the epoch, MJD TT. All else is null.
    """
    numbers = np.flatnonzero(bodies["known"])
    known = bodies[numbers]
    rows = empty("mpc_orbits", len(known))
    rows["id"] = numbers + 1
    unpacked, packed = designations(numbers)
    rows["designation"] = rows["unpacked_primary_provisional_designation"] = unpacked
    rows["packed_primary_provisional_designation"] = packed
    for name in ("a", "e", "i", "node", "argperi", "mean_anomaly", "h"):
        rows[name] = known[name]
    rows["q"], rows["g"], rows["epoch_mjd"] = known["a"] * (1.0 - known["e"]), SLOPE_G, EPOCH_MJD
    rows["mean_motion"] = np.degrees(GAUSS_K) * known["a"] ** -1.5
    rows["period"] = 360.0 / rows["mean_motion"]
    since_perihelion = np.mod(known["mean_anomaly"] + 180.0, 360.0) - 180.0
    rows["peri_time"] = EPOCH_MJD - since_perihelion / rows["mean_motion"]
    return rows


def designations(numbers: NDArray[np.int64]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Provisional designations, unpacked (`2001 AB12`) and packed (`K01A12B`).

    Written as the Minor Planet Center does. Numbers run through 25 letters, 24 half months and 100 cycles a
    year, from 2000 on.
    """
    rest, letter = np.divmod(numbers, 25)
    rest, half_month = np.divmod(rest, 24)
    year, cycle = np.divmod(rest, 100)
    letters = np.array(list("ABCDEFGHJKLMNOPQRSTUVWXYZ"))
    digits = np.array([f"{n:02d}" for n in range(100)])
    first, second = letters[half_month], letters[letter]
    order = np.array(["", *(str(n) for n in range(1, 100))])[cycle]
    unpacked = np.strings.add(np.strings.add(np.strings.add("20", digits[year]), " "), first)
    packed = np.strings.add(np.strings.add(np.strings.add("K", digits[year]), first), digits[cycle])
    return np.strings.add(np.strings.add(unpacked, second), order), np.strings.add(packed, second)
