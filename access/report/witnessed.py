"""What somebody saw who read the topic of alerts, held to what the L1 database says."""

import numpy as np
from numpy.typing import NDArray

from access.report.model import Witnessed
from schemas.clock import Clock
from schemas.tables import Table

SEEN_DTYPE = np.dtype([("diaSourceId", "i8"), ("at", "f8"), ("sha256", "S64")])
"""A message: -1 for one that is no alert; when it was seen, TAI s; of all its bytes."""

PROMISE_S = 60.0


def witnessed(seen: Table, answers: Table, clock: Clock) -> Witnessed:
    """`seen`: SEEN_DTYPE rows, in the order of their coming; `answers`: of `L1Database.acknowledgements`."""
    ids, first = np.unique(seen["diaSourceId"], return_index=True)
    contents = np.unique(seen[["diaSourceId", "sha256"]])["diaSourceId"]
    stored, acknowledged = answers["diaSourceId"], np.isfinite(answers["acknowledged_at"])
    seconds = _latencies(ids, seen["at"][first], answers, clock)
    return Witnessed(
        messages=len(seen), alerts=len(ids), differing=len(contents) - len(ids),
        missing=int(np.sum(~np.isin(stored[acknowledged], ids))), unknown=int(np.sum(~np.isin(ids, stored))),
        within_60s=float(np.mean(seconds <= PROMISE_S)) if len(seconds) else None,
        max_s=float(seconds.max()) if len(seconds) else None,
    )  # fmt: skip


def _latencies(ids: NDArray[np.int64], at: NDArray[np.float64], answers: Table, clock: Clock) -> NDArray[np.float64]:
    """Wall seconds from readout to first sight, of the alerts that are known."""
    order = np.argsort(answers["diaSourceId"])
    known = np.isin(ids, answers["diaSourceId"])
    rows = order[np.searchsorted(answers["diaSourceId"], ids[known], sorter=order)]
    night_s = at[known] - answers["readout_ended"][rows]
    return np.array([clock.wall_seconds(float(value)) for value in night_s], dtype=np.float64)
