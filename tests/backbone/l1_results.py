"""Results of visit-detectors, random and valid, for tests of the L1 database."""

import numpy as np

from backbone.l1 import VisitDetectorResult
from schemas.identity import dia_forced_source_id, dia_source_id
from schemas.tables import Table, apdb_schema, dtype_of, empty

MJD = 61000.0
RA, DEC = 150.0, 2.0


def filled(name: str, rows: int, rng: np.random.Generator, null_fraction: float = 0.2) -> Table:
    """Random values in every column, some of them null where the schema lets them be."""
    table = empty(name, rows)
    for column, description in apdb_schema()[name].items():
        kind = table.dtype[column].kind
        values = rng.normal(size=rows) if kind == "f" else rng.integers(1, 9, rows)
        if kind == "U":
            values = np.array(list("ugrizy"))[values % 6]
        if description.get("nullable", True):
            values = np.where(rng.random(rows) < null_fraction, empty(name, 1)[column][0], values)
        table[column] = values
    return table


def result(
    visit: int,
    detector: int = 94,
    *,
    n: int = 20,
    known: Table | None = None,
    mjd: float = MJD,
    seed: int = 1,
) -> VisitDetectorResult:
    """`n` sources: the first ones of the `known` objects, the last of an orbit, the others of new objects."""
    rng = np.random.default_rng([seed, visit, detector])
    known = np.zeros(0, dtype_of("DiaObject")) if known is None else known
    sources = filled("DiaSource", n, rng)
    sources["diaSourceId"] = [dia_source_id(visit, detector, i) for i in range(n)]
    sources["visit"], sources["detector"], sources["band"] = visit, detector, "r"
    sources["midpointMjdTai"], sources["timeProcessedMjdTai"] = mjd, mjd + 0.001
    sources["ra"], sources["dec"] = RA + rng.uniform(-0.1, 0.1, n), DEC + rng.uniform(-0.1, 0.1, n)
    sources["diaObjectId"], sources["ssObjectId"] = sources["diaSourceId"], 0
    m = len(known)
    for column in ("diaObjectId", "ra", "dec"):
        sources[column][:m] = known[column]
    sources["diaObjectId"][-1], sources["ssObjectId"][-1] = 0, 77
    ss_sources = filled("SSSource", 1, rng)
    ss_sources["diaSourceId"], ss_sources["ssObjectId"] = sources["diaSourceId"][-1], 77
    objects = np.concatenate([known, _objects_of(sources[m:-1], rng)])
    read_starts = np.append(known["validityStartMjdTai"], np.full(len(objects) - m, np.nan))
    objects["validityStartMjdTai"], objects["validityEndMjdTai"] = mjd + 0.001, np.nan
    return VisitDetectorResult(
        f"group {visit}", visit, detector, 1.5e9 + mjd, sources, objects, _forced(sources[:-1], mjd, rng),
        ss_sources, f"{visit}_{detector}.avro", sources["diaSourceId"].astype(np.int64)[::-1].copy(),
        read_starts,
    )  # fmt: skip


def _objects_of(sources: Table, rng: np.random.Generator) -> Table:
    objects = filled("DiaObject", len(sources), rng)
    for column in ("diaObjectId", "ra", "dec"):
        objects[column] = sources[column]
    return objects


def _forced(sources: Table, mjd: float, rng: np.random.Generator) -> Table:
    forced = filled("DiaForcedSource", len(sources), rng)
    for column in ("diaObjectId", "ra", "dec", "visit", "detector", "band"):
        forced[column] = sources[column]
    forced["midpointMjdTai"] = mjd
    visit, detector = int(sources["visit"][0]), int(sources["detector"][0])
    forced["diaForcedSourceId"] = [dia_forced_source_id(visit, detector, i) for i in range(len(forced))]
    return forced
