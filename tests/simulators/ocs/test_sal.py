import io
import json
from pathlib import Path

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from schemas.errors import Broken
from simulators.ocs import sal

REAL = Path(__file__).parents[4] / "shared" / "data" / "events" / "nextVisit_schema_and_record.json"
NEXT_VISIT = sal.topic("ScriptQueue", "nextVisit")


@pytest.mark.skipif(not REAL.exists(), reason="the real nextVisit schema is not beside the repository")
def test_next_visit_is_the_observatorys_own() -> None:
    real, ours = json.loads(REAL.read_text())["schema"], sal.schema(NEXT_VISIT)
    assert [ours[key] for key in ("type", "name", "namespace")] == [real[key] for key in ("type", "name", "namespace")]
    described = {field["name"]: (field["type"], field["default"]) for field in real["fields"]}
    assert {field["name"]: (field["type"], field["default"]) for field in ours["fields"]} == described


@pytest.mark.skipif(not REAL.exists(), reason="the real nextVisit record is not beside the repository")
def test_a_real_next_visit_is_written_and_read_with_our_schema() -> None:
    value = json.loads(REAL.read_text())["records"][0]["value"]
    schema, buffer = parse_schema(sal.schema(NEXT_VISIT)), io.BytesIO()
    schemaless_writer(buffer, schema, value)
    assert schemaless_reader(io.BytesIO(buffer.getvalue()), schema, None) == value


def test_every_topics_empty_record_is_avro_of_its_schema() -> None:
    assert len(sal.FIELDS) == 2 + 2 * 5
    for topic in sal.FIELDS:
        schema, buffer, record = parse_schema(sal.schema(topic)), io.BytesIO(), sal.record(topic)
        schemaless_writer(buffer, schema, record)
        assert schemaless_reader(io.BytesIO(buffer.getvalue()), schema, None) == record


def test_a_field_that_a_topic_lacks_is_a_bug() -> None:
    with pytest.raises(Broken, match="has no field nImages"):
        sal.record(NEXT_VISIT, nImages=2)


def test_only_a_component_of_several_instances_has_an_index() -> None:
    with_index = {topic for topic, fields in sal.FIELDS.items() if "salIndex" in {field.name for field in fields}}
    assert with_index == {NEXT_VISIT, sal.topic("ScriptQueue", "nextVisitCanceled")}


def test_a_message_leaves_with_its_stamps() -> None:
    sent = sal.stamped(NEXT_VISIT, sal.record(NEXT_VISIT, salIndex=1), sent=1e9, seq_num=7, origin=42)
    assert (sent["private_sndStamp"], sent["private_efdStamp"]) == (1e9, 1e9 - 37.0)
    assert (sent["private_seqNum"], sent["private_origin"]) == (7, 42)
    assert sent["private_identity"] == "ScriptQueue:1"
    assert len(str(sent["private_revCode"])) == 8


def test_a_groups_colons_are_escaped() -> None:
    assert sal.joined(["OBJECT", r"2026-07-05T22:36:08.255\x"]) == r"OBJECT:2026-07-05T22\:36\:08.255\\x"
