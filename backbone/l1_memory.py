"""The L1 database of a run in one process: as long as the process lives."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from backbone.l1 import (
    ACKNOWLEDGEMENT_DTYPE,
    Counts,
    Floats,
    Ids,
    Outbox,
    Stored,
    VisitDetectorResult,
    check_result,
    check_table,
    merged_acknowledgements,
    ordered,
)
from schemas.errors import BadData, Transient
from schemas.events import Event
from schemas.tables import Table, dtype_of, empty
from schemas.wcs import separation_arcsec


class L1Memory:
    """`backbone.l1.L1Database` in NumPy arrays. `facts`: what was stored with the results, in order."""

    def __init__(self) -> None:
        self.facts: list[Event] = []
        self._tables = {name: _Rows(name) for name in ("DiaSource", "DiaObject", "DiaForcedSource", "SSSource")}
        self._current: dict[int, int] = {}
        self._outboxes: dict[tuple[int, int], Outbox] = {}
        self._digests: dict[tuple[int, int], bytes] = {}
        self._orbits = empty("mpc_orbits", 0)

    async def objects_in(self, ra: float, dec: float, radius_deg: float) -> Table:
        """See `L1Database`."""
        objects = self._tables["DiaObject"].rows
        current = np.fromiter(self._current.values(), np.intp, len(self._current))
        separation = separation_arcsec(objects["ra"][current], objects["dec"][current], ra, dec)
        found = ordered(objects[current[separation <= radius_deg * 3600.0]], "diaObjectId")
        result = empty("DiaObjectLast", len(found))
        for name in result.dtype.names or ():
            result[name] = found[name]
        return result

    async def objects_of(self, object_ids: Ids) -> Table:
        """See `L1Database`."""
        places = [self._current[i] for i in object_ids.tolist() if i in self._current]
        return ordered(self._tables["DiaObject"].rows[places], "diaObjectId")

    async def history_of(self, object_ids: Ids, since_mjd: float) -> tuple[Table, Table]:
        """See `L1Database`."""
        sources, forced = (self._history(name, object_ids, since_mjd) for name in ("DiaSource", "DiaForcedSource"))
        return sources, forced

    async def preload(self, ra: float, dec: float, radius_deg: float, since_mjd: float) -> int:
        """See `L1Database`. All is in memory here."""
        ids = (await self.objects_in(ra, dec, radius_deg))["diaObjectId"]
        sources, forced = await self.history_of(ids, since_mjd)
        return 2 * len(ids) + len(sources) + len(forced)

    def _history(self, name: str, object_ids: Ids, since_mjd: float) -> Table:
        rows = self._tables[name].rows
        wanted = np.isin(rows["diaObjectId"], object_ids) & (rows["midpointMjdTai"] >= since_mjd)
        return ordered(rows[wanted], "diaObjectId", "midpointMjdTai")

    async def sources_of(self, visit: int, detector: int) -> Table:
        """See `L1Database`."""
        rows = self._tables["DiaSource"].rows
        return ordered(rows[(rows["visit"] == visit) & (rows["detector"] == detector)], "diaSourceId")

    async def contains(self, visit: int, detector: int) -> bool:
        """See `L1Database`."""
        return (visit, detector) in self._outboxes

    async def store(
        self,
        result: VisitDetectorResult,
        facts: Sequence[Event],
        at: float,  # noqa: ARG002 - the journal of a run in one process keeps the time
    ) -> Stored:
        """See `L1Database`."""
        check_result(result)
        key = result.visit, result.detector
        if key in self._digests:
            if self._digests[key] != result.digest:
                raise BadData(f"{result} is stored already, with another content")
            return Stored.EXISTS
        new_objects = self._put_objects(result)
        for name in ("DiaSource", "DiaForcedSource", "SSSource"):
            self._tables[name].append(result.tables()[name])
        self._digests[key] = result.digest
        self._outboxes[key] = _outbox(result, new_objects)
        self.facts.extend(facts)
        return Stored.ADDED

    def _put_objects(self, result: VisitDetectorResult) -> int:
        """End the versions that were read, add the new ones; returns how many objects are new."""
        versions = self._tables["DiaObject"]
        ids = result.objects["diaObjectId"].tolist()
        known = [(i, self._current[id_]) for i, id_ in enumerate(ids) if id_ in self._current]
        current = np.full(len(ids), np.nan)
        for i, row in known:
            current[i] = versions.rows["validityStartMjdTai"][row]
        both_new = np.isnan(current) & np.isnan(result.read_starts)
        other = np.flatnonzero((current != result.read_starts) & ~both_new)
        if len(other):
            raise Transient(f"{result}: DiaObject {ids[other[0]]} is not as it was read: it was changed meanwhile")
        for i, row in known:
            versions.rows["validityEndMjdTai"][row] = result.objects["validityStartMjdTai"][i]
        first = len(versions.rows)
        versions.append(result.objects)
        self._current.update(zip(ids, range(first, first + len(ids)), strict=True))
        return len(ids) - len(known)

    async def outbox(self, visit: int, detector: int) -> Outbox | None:
        """See `L1Database`."""
        return self._outboxes.get((visit, detector))

    async def unsent(self) -> list[Outbox]:
        """See `L1Database`."""
        return [outbox for outbox in self._outboxes.values() if np.any(outbox.owed)]

    async def mark_sent(self, visit: int, detector: int, acknowledged_at: Floats, failures: Mapping[str, int]) -> None:
        """See `L1Database`."""
        outbox = self._outboxes.get((visit, detector))
        earlier = None if outbox is None else outbox.acknowledged_at.tolist()
        merged = merged_acknowledgements(earlier, acknowledged_at, f"visit {visit} detector {detector}")
        if outbox is not None:
            self._outboxes[visit, detector] = replace(outbox, acknowledged_at=merged, failures=dict(failures))

    async def acknowledgements(self, visits: Sequence[int]) -> Table:
        """See `L1Database`."""
        wanted = set(visits)
        outboxes = [self._outboxes[key] for key in sorted(self._outboxes) if key[0] in wanted]
        table = np.empty(sum(o.n_alerts for o in outboxes), ACKNOWLEDGEMENT_DTYPE)
        start = 0
        for outbox in outboxes:
            rows = table[start : start + outbox.n_alerts]
            rows["visit"], rows["detector"] = outbox.visit, outbox.detector
            rows["diaSourceId"], rows["acknowledged_at"] = outbox.alert_ids, outbox.acknowledged_at
            rows["readout_ended"] = outbox.readout_ended
            start += outbox.n_alerts
        return table

    async def load_orbits(self, table: Table) -> None:
        """See `L1Database`."""
        check_table("mpc_orbits", table, "the catalogue of orbits")
        self._orbits = ordered(table, "id")

    async def orbits(self) -> Table:
        """See `L1Database`."""
        return self._orbits.copy()

    async def counts(self) -> dict[tuple[int, int], Counts]:
        """See `L1Database`."""
        return {key: _counts(outbox) for key, outbox in self._outboxes.items()}


class _Rows:
    """A table that grows."""

    def __init__(self, name: str) -> None:
        self._buffer = np.empty(64, dtype_of(name))
        self._used = 0

    @property
    def rows(self) -> Table:
        """What is in it; writes go through."""
        return self._buffer[: self._used]

    def append(self, table: Table) -> None:
        """Add rows at the end; the buffer doubles when it is full."""
        needed = self._used + len(table)
        if needed > len(self._buffer):
            grown = np.empty(max(needed, 2 * len(self._buffer)), self._buffer.dtype)
            grown[: self._used] = self.rows
            self._buffer = grown
        self._buffer[self._used : needed] = table
        self._used = needed


def _outbox(result: VisitDetectorResult, new_objects: int) -> Outbox:
    return Outbox(
        result.group, result.visit, result.detector, result.readout_ended, result.alert_path,
        len(result.sources), new_objects, len(result.forced),
        result.alert_ids.astype(np.int64), result.alert_keys(), np.full(len(result.alert_ids), np.nan), {},
    )  # fmt: skip


def _counts(outbox: Outbox) -> Counts:
    return Counts(
        outbox.dia_sources, outbox.new_dia_objects, outbox.dia_forced_sources,
        outbox.n_alerts, outbox.n_alerts - int(outbox.owed.sum()),
    )  # fmt: skip
