"""Alerts of the real path, from pixels on, in which as many of the schema's fields are filled as the path can fill.

A simulated pair is subtracted, its sources are measured and scored once. They are then told as a year of visits, two
in each band, to the associator; two of them lie where bodies of the catalogue of orbits are predicted, of one of which
the catalogue tells everything, of the other its orbit and no more.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.associator import Associator
from backbone.alert_archive import AlertArchive
from backbone.journal import MemoryJournal
from backbone.l1_memory import L1Memory
from cluster.pixels import MemoryPixels
from payloads.alert_production import pipeline
from payloads.alert_production.alert_schema import Record, alert_schema
from payloads.alert_production.ephemerides import LIGHT_AU_DAY
from payloads.alert_production.observatory import TT_MINUS_TAI, observer_at
from payloads.alert_production.packets import alertable
from payloads.alert_production.subtract import warp_template
from payloads.alert_production.two_body import GAUSS_K, OBLIQUITY
from payloads.imaging.sphere import unit_vectors
from schemas.clock import ManualClock, mjd_from_tai
from schemas.events import AlertsReady, AssociationDue, DiaSourcesReady
from schemas.identity import DatasetId, dia_source_id
from schemas.image import DiaProducts, MaskedImage, Observation
from schemas.instrument import BANDS, camera
from schemas.tables import Table, empty
from tests.backbone.l1_results import filled
from tests.payloads.alert_production.pairs import Pair, make_pair
from tests.payloads.alert_production.plain_records import decoded_alert

SIDE, SEED, DETECTOR = 640, 11, 94
FIRST_VISIT, STARTED, BETWEEN_S = 2026070500001, 1783300923.0, 2_400.0
N_VISITS = 2 * len(BANDS)


async def sample() -> list[Record]:
    """The alerts of all the visits, in their order."""
    products = measured(crowded())
    l1, journal, pixels, clock = L1Memory(), MemoryJournal(), MemoryPixels(), ManualClock(STARTED)
    await l1.load_orbits(bodies_at(products.sources[alertable(products.sources)][:2], mjd_from_tai(STARTED + 16.5)))
    alerts = []
    with tempfile.TemporaryDirectory() as folder:
        archive = AlertArchive(Path(folder), alert_schema())
        associator = Associator(
            camera=camera("LSSTCam"), l1=l1, archive=archive, pixels=pixels, chronicle=journal, clock=clock
        )
        for number in range(N_VISITS):
            due = told(number)
            clock.set_to(due.sources.observation.readout_ended + 10.0)
            await pixels.put(due.sources.products, as_of(products, due))
            (fact,) = await associator.react(due)
            assert isinstance(fact, AlertsReady)
            alerts += [decoded_alert(packet) for packet in archive.read(fact.path)]
    return alerts


def crowded() -> Pair:
    """All kinds of sources."""
    return with_dipole(
        make_pair(SIDE, SEED, injected=25, faded=8, trails=10, variables=10, density=3.0, snr=(8.0, 80.0))
    )


def with_dipole(pair: Pair) -> Pair:
    """A star moved by a few pixels: gained in one place, lost in the next."""
    image = pair.science.pixels.image.copy()
    kernel = pair.science.psf.at(SIDE / 2, SIDE / 2)
    half = kernel.shape[0] // 2
    for x, sign in ((300, 1.0), (306, -1.0)):
        image[400 - half : 401 + half, x - half : x + half + 1] += np.float32(sign * 60_000.0) * kernel
    pixels = MaskedImage(image, pair.science.pixels.mask, pair.science.pixels.variance)
    return replace(pair, science=replace(pair.science, pixels=pixels))


def measured(pair: Pair) -> DiaProducts:
    products, _ = pipeline.difference(
        pair.science, warp_template(pair.template, pair.science), visit=FIRST_VISIT, detector=DETECTOR,
        stage=lambda _: nullcontext(), processed=STARTED + 50.0,
    )  # fmt: skip
    return products


def told(number: int) -> AssociationDue:
    """The visit of that number, from 0: its band, its time."""
    visit, started, group = FIRST_VISIT + 2 * number, STARTED + BETWEEN_S * number, f"g{number}"
    band = BANDS[number % len(BANDS)]
    products = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=visit, detector=DETECTOR)
    seen = Observation(
        "LSSTCam", group, visit, visit + 1, 1, 2, "", f"{band}_0", band, 150.0, 2.2, 17.0, 15.0, started + 18.0,
        started + 35.0, "BLOCK-407",
    )  # fmt: skip
    sources = DiaSourcesReady(
        group=group, instrument="LSSTCam", visit=visit, detector=DETECTOR, observation=seen, count=1,
        products=products, stages={}, summary={},
    )  # fmt: skip
    return AssociationDue(group=group, visit=visit, detector=DETECTOR, sources=sources)


def as_of(products: DiaProducts, due: AssociationDue) -> DiaProducts:
    """The same pixels and sources, of another visit."""
    band, midpoint = due.sources.observation.band, due.sources.observation.started - 18.0 + 16.5
    sources = products.sources.copy()
    sources["diaSourceId"] = [dia_source_id(due.visit, DETECTOR, n) for n in range(len(sources))]
    sources["visit"], sources["band"], sources["midpointMjdTai"] = due.visit, band, mjd_from_tai(midpoint)
    difference = replace(products.difference, band=band, midpoint=midpoint)
    science = replace(products.science, band=band, midpoint=midpoint)
    return replace(products, sources=sources, difference=difference, science=science)


def bodies_at(sources: Table, mjd_tai: float) -> Table:
    """A catalogue of two bodies that pass where two sources were seen."""
    catalogue = empty("mpc_orbits", 2)
    catalogue[0] = filled("mpc_orbits", 1, np.random.default_rng(SEED), null_fraction=0.0)[0]
    catalogue["id"], catalogue["h"][0], catalogue["g"][0] = (1, 2), 17.0, 0.15
    for name, names in (
        ("designation", ("2031 AA", "2031 AB")),
        ("unpacked_primary_provisional_designation", ("2031 AA", "2031 AB")),
        ("packed_primary_provisional_designation", ("K31A00A", "K31A00B")),
    ):
        catalogue[name] = names
    for row, source in zip(catalogue, sources, strict=True):
        for name, value in circle_through(source, mjd_tai).items():
            row[name] = value
    catalogue["epoch_mjd"][0] = mjd_tai
    return catalogue


def circle_through(source: Table, mjd_tai: float, axis: float = 2.5, inclination: float = 20.0) -> dict[str, float]:
    """Elements of a circle about the Sun, `axis` au, inclination deg, on which a body was seen where a source was."""
    direction, here = unit_vectors(source["ra"], source["dec"]), observer_at(mjd_tai).position
    along = direction @ here
    distance = -along + np.sqrt(along**2 + axis**2 - here @ here)
    x, y, z = here + distance * direction
    c, s = np.cos(OBLIQUITY), np.sin(OBLIQUITY)
    longitude, latitude = np.arctan2(c * y + s * z, x), np.arcsin((c * z - s * y) / axis)
    tilt = np.radians(inclination)
    argument = np.arcsin(np.sin(latitude) / np.sin(tilt))
    node = longitude - np.arctan2(np.cos(tilt) * np.sin(argument), np.cos(argument))
    left = mjd_tai + TT_MINUS_TAI - distance / LIGHT_AU_DAY
    return {
        "q": axis, "e": 0.0, "i": inclination, "node": np.degrees(node) % 360.0, "argperi": 0.0,
        "peri_time": left - argument / (GAUSS_K * axis**-1.5),
    }  # fmt: skip
