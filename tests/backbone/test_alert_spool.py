import math
from pathlib import Path

import pytest

from backbone.alert_spool import AlertSpool, read_spool
from backbone.alert_stream import Alert
from schemas.clock import ManualClock
from schemas.errors import BadData
from tests.backbone.full_disk import files_of_at_most

ALERTS = [Alert(b"7", bytes([i]) * (100 + i), i) for i in range(20)]
VALUES = [alert.value for alert in ALERTS]


async def test_a_spool_opened_again_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    for _ in range(2):
        await AlertSpool(tmp_path / "spool", ManualClock()).send(ALERTS)
    assert read_spool(tmp_path / "spool") == VALUES * 2


@pytest.mark.parametrize("left", [2, 4, 50])
async def test_a_message_cut_short_by_a_crash_is_noticed_and_then_cut_off(tmp_path: Path, left: int) -> None:
    path = tmp_path / "spool"
    await AlertSpool(path, ManualClock()).send(ALERTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 119 - 4 + left])
    with pytest.raises(BadData, match="spool: cut short after 19 messages"):
        read_spool(path)
    await AlertSpool(path, ManualClock()).send(ALERTS[:1])
    assert read_spool(path) == [*VALUES[:19], VALUES[0]]


async def test_a_full_disk_fails_the_alerts_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = AlertSpool(path, ManualClock(5.0))
    await spool.send(ALERTS)
    with files_of_at_most(path.stat().st_size + 500):
        deliveries = await spool.send(ALERTS)
    assert all(math.isnan(d.acknowledged_at) and "spool cannot be written" in d.error for d in deliveries)
    assert read_spool(path) == VALUES
    await spool.send(ALERTS[:2])
    assert read_spool(path) == [*VALUES, *VALUES[:2]]
