"""A short night end to end: inline, live, and one held to the other."""

import hashlib
import io
import json
import os
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import fastavro
import pytest
from astropy.io import fits
from lsst.alert.packet import Schema, get_path_to_latest_schema

from backbone.alert_spool import read_spool
from backbone.visit_stream import read_visit_spool
from tests.night.conftest import FAULTS

pytestmark = [pytest.mark.night, pytest.mark.timeout(600)]

WHEN = {"at", "announced", "stages", "last_acknowledged", "summary"}
"""Of a fact: what says when, or how long it took."""


OWN = {"timeMjdTai", "digest", "keyId", "publicKey"}
"""Of a notice: when it was, and what follows from the night's own key, or from the times in its packets."""


def plain(fact: Any, but: set[str] = WHEN) -> Any:
    """A fact without its times."""
    if isinstance(fact, dict):
        return {key: plain(value, but) for key, value in fact.items() if key not in but}
    return [plain(item, but) for item in fact] if isinstance(fact, list) else fact


def read(fact: dict[str, Any]) -> dict[str, Any]:
    """A fact; of a notice also what is in it, without what is the night's own."""
    return fact | {"value": plain(json.loads(fact["value"]), OWN)} if fact["kind"] == "NoticeDue" else fact


def told(night: Any, *but: str) -> list[str]:
    """What was told, in no order."""
    return sorted(json.dumps(plain(read(fact)), sort_keys=True) for fact in night.facts if fact["kind"] not in but)


def decoded(messages: list[bytes]) -> list[dict[str, Any]]:
    """As somebody reads them who has nothing but the official packages."""
    schema = Schema.from_file(get_path_to_latest_schema())
    records = []
    for message in messages:
        magic, schema_id = struct.unpack(">bI", message[:5])
        assert (magic, schema_id) == (0, 1101)
        records.append(fastavro.schemaless_reader(io.BytesIO(message[5:]), schema.definition, None))
    return records


def test_the_inline_night_reconciles(inline_night: Any) -> None:
    balance = inline_night.report["balance"]
    assert balance["visits"] == balance["visits_planned"] == 2
    assert balance["raws"] == balance["raws_archived"] == 4
    assert balance["alerts_made"] == balance["alerts_acknowledged"] > 10
    assert balance["failed"] == {}
    assert balance["reconciles"]


def test_the_inline_night_is_right_about_the_sky(inline_night: Any) -> None:
    truth = inline_night.report["truth"]
    bright = [b for b in truth["completeness"] if b["snr_min"] >= 20.0 and b["true"] >= 5]
    assert bright
    assert all(b["detected"] >= 0.95 for b in bright)
    assert truth["purity"] >= 0.75
    assert truth["position_mas"] < 100.0
    assert abs(truth["flux_bias"]) < 0.03
    assert 0.8 < truth["flux_pull_width"] < 1.25


def test_every_spooled_alert_is_an_official_packet(inline_night: Any) -> None:
    messages = read_spool(inline_night.output / "alerts.spool")
    alerts = decoded(messages)
    assert len(alerts) == inline_night.report["balance"]["alerts_made"]
    assert len({a["diaSourceId"] for a in alerts}) == len(alerts)
    assert all(a["diaObject"] is not None or a["ssSource"] is not None for a in alerts)


def reconciles(messages: list[bytes], notices: list[dict[str, Any]]) -> bool:
    """Whether each visit's manifest says of the alerts what somebody who received them finds, and of all of them."""
    hashes: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
    for message, alert in zip(messages, decoded(messages), strict=True):
        where = alert["diaSource"]["visit"], alert["diaSource"]["detector"]
        hashes[where][alert["diaSourceId"]] = hashlib.sha256(message[5:]).digest()
    found = {
        where: (len(own), hashlib.sha256(b"".join(i.to_bytes(8, "big") + own[i] for i in sorted(own))).hexdigest())
        for where, own in hashes.items()
    }
    told = {
        (notice["visit"], one["detector"]): (one["acknowledged"], one["digest"])
        for notice in notices if notice["kind"] == "visit_ends" for one in notice["detectors"]
    }  # fmt: skip
    return found == told


def kinds(notices: list[dict[str, Any]]) -> list[str]:
    return [notice["kind"] for notice in notices]


def test_the_manifests_of_the_inline_night_reconcile_with_its_spool(inline_night: Any) -> None:
    notices = [json.loads(notice.value) for notice in read_visit_spool(inline_night.output / "visits.jsonl")]
    assert reconciles(read_spool(inline_night.output / "alerts.spool"), notices)
    assert kinds(notices) == ["night_begins", "visit_begins", "visit_begins", "visit_ends", "visit_ends", "night_ends"]


def test_every_alert_is_spooled_lite(inline_night: Any) -> None:
    whole, short = [decoded(read_spool(inline_night.output / f"alerts{name}.spool")) for name in ("", "-lite")]
    assert [alert["diaSourceId"] for alert in short] == [alert["diaSourceId"] for alert in whole]
    assert all(alert["cutoutScience"] is None for alert in short)
    balance = inline_night.report["balance"]
    assert (balance["lite_sent"], balance["lite_failed"], balance["lite_owed"]) == (len(whole), {}, 0)


def test_cutouts_hold_wcs_psf_variance_and_mask(inline_night: Any) -> None:
    alert = decoded(read_spool(inline_night.output / "alerts.spool"))[0]
    for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        with fits.open(io.BytesIO(alert[name])) as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "UNCERT", "MASK", "PSFIMAGE"]
            assert 30 <= hdus[0].data.shape[0] <= 102
            assert hdus[0].header["CTYPE1"].startswith("RA---TAN")


def test_the_report_page_shows_six_plots(inline_night: Any) -> None:
    page = (inline_night.output / "report.html").read_text("utf-8")
    assert page.count("<svg") == 6
    assert "Where the time goes" in page


@pytest.mark.ray
def test_the_live_night_ends_well_although_a_worker_a_server_and_two_actors_were_killed(live_night: Any) -> None:
    assert live_night.code == 0, live_night.screen
    assert {fault["name"]: fault["state"] for fault in live_night.report["faults"]} == dict.fromkeys(FAULTS, "begun")
    seen = live_night.report["witnessed"]
    assert (seen["missing"], seen["unknown"], seen["differing"]) == (0, 0, 0)
    balance = live_night.report["balance"]
    assert balance["alerts_made"] == balance["alerts_acknowledged"] > 10
    assert balance["reconciles"]


@pytest.mark.ray
def test_a_stranger_saw_every_alert(live_night: Any) -> None:
    alerts = decoded(live_night.seen)
    unique = {a["diaSourceId"] for a in alerts}
    assert len(unique) == live_night.report["balance"]["alerts_acknowledged"]


@pytest.mark.ray
def test_a_stranger_reconciles_what_it_saw_with_the_manifests(live_night: Any) -> None:
    notices = [json.loads(value) for value in dict.fromkeys(live_night.told)]
    assert reconciles(live_night.seen, notices)
    assert kinds(notices)[0] == "night_begins"
    assert kinds(notices)[-1] == "night_ends"
    assert kinds(notices).count("visit_begins") == kinds(notices).count("visit_ends") == 2


@pytest.mark.ray
def test_inline_and_live_tell_the_same_facts(inline_night: Any, live_night: Any) -> None:
    # The archive's URIs name the output folder; the alert file's name a hash of the times inside.
    but = ("RawArchived", "AlertsReady")
    assert told(inline_night, *but) == told(live_night, *but)
    assert len(inline_night.facts) == len(live_night.facts)


@pytest.mark.ray
def test_the_live_night_leaves_no_process(live_night: Any) -> None:
    left = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(live_night.output).encode() in words:
                left.append(words)
    assert left == []
