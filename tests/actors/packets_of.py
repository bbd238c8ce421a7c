"""Alert packets about the sources of a made-up result, cutouts of any size with them."""

import numpy as np

from backbone.l1 import VisitDetectorResult
from payloads.alert_production.packets import make_packets
from schemas.image import MaskedImage, Observation, Stamp
from schemas.tables import Table, empty
from schemas.wcs import Wcs
from tests.backbone.l1_results import filled

OBSERVATION = Observation(
    "LSSTCam", "2026-07-06T01:02:03", 2026070500001, 2026070500001, 0, 1, "MC_O_20260705_000001", "r_57", "r",
    150.0, 2.0, 33.2, 30.0, 0.0, 32.0, "BLOCK-407",
)  # fmt: skip


def packets_of(found: VisitDetectorResult, *, side: int = 31, pairs: int = 3) -> list[bytes]:
    """One for each of the result's alerts, in their order, with `pairs` of history where there is an object."""
    rng = np.random.default_rng(side)
    order = [int(np.flatnonzero(found.sources["diaSourceId"] == number)[0]) for number in found.alert_ids]
    sources = found.sources[order]
    orbits = filled("mpc_orbits", 1, rng)
    orbits["designation"] = found.ss_sources["designation"][0]
    for name in ("created_at", "updated_at", "fitting_datetime"):
        orbits[name] = 1.7e9
    return make_packets(
        sources, [_stamp(rng, side) for _ in order], objects=found.objects,
        history=_earlier("DiaSource", sources, pairs, rng),
        forced_history=_earlier("DiaForcedSource", sources, pairs, rng), ss_sources=found.ss_sources, orbits=orbits,
        observation=OBSERVATION,
    )  # fmt: skip


def _earlier(name: str, sources: Table, count: int, rng: np.random.Generator) -> Table:
    owners = np.repeat(sources["diaObjectId"][sources["diaObjectId"] != 0], count)
    table = filled(name, len(owners), rng) if len(owners) else empty(name, 0)
    table["diaObjectId"], table["timeWithdrawnMjdTai"] = owners, np.nan
    table["midpointMjdTai"] = sources["midpointMjdTai"][0] - rng.uniform(1, 300, len(owners)) if len(owners) else []
    return table


def _stamp(rng: np.random.Generator, side: int) -> Stamp:
    """Noise on a sky that differs between the three, as float32 of nJy."""
    planes = [
        MaskedImage(
            rng.normal(0.0, sigma, (side, side)).astype("f4"),
            (16 * (rng.random((side, side)) < 0.02)).astype("u2"),
            rng.normal(sigma**2, sigma, (side, side)).astype("f4"),
        )
        for sigma in (150.0, 40.0, 155.0)
    ]
    wcs = Wcs((150.0, 2.0), (side / 2 - 300.0, side / 2 + 70.0), np.array([[-4.6e-5, 3e-5], [3e-5, 4.6e-5]]))
    y, x = np.mgrid[-12:13, -12:13]
    psf = (np.exp(-(x**2 + y**2) / 8.0) / (8.0 * np.pi)).astype("f4")
    return Stamp(*planes, wcs, psf, psf, psf)
