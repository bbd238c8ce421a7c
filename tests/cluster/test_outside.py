"""What a night is played beside."""

import json
from pathlib import Path

import aiohttp
import pytest

from backbone.schema_registry import SchemaRegistry
from cluster.options import NightOptions
from cluster.outside import registry
from cluster.settings import Settings
from payloads.alert_production.alert_schema import schema_id
from schemas.errors import BadData

OTHER = {"type": "record", "name": "alert", "fields": [{"name": "diaSourceId", "type": "long"}]}


async def pin(server: SchemaRegistry, schema: object) -> None:
    """As a registry's owner, who has given the id to this schema."""
    async with aiohttp.ClientSession() as session:
        for method, path, body in (
            ("PUT", "/mode/owners-value", {"mode": "IMPORT"}),
            ("POST", "/subjects/owners-value/versions", {"schema": json.dumps(schema), "id": schema_id()}),
        ):
            async with session.request(method, server.url + path, json=body) as answer:
                assert answer.status == 200, await answer.text()


async def test_a_registry_whose_alert_id_is_another_schema_ends_the_night_by_name(tmp_path: Path) -> None:
    async with SchemaRegistry(tmp_path / "theirs.json") as server:
        await pin(server, OTHER)
        before = (tmp_path / "theirs.json").read_bytes()
        options = NightOptions(output=tmp_path, registry=server.url)
        with pytest.raises(BadData, match=rf"{server.url}, id 1101: it is another schema, .* lsst-alerts-v11-value"):
            async with registry(options, Settings(output=tmp_path, kafka="127.0.0.1:9")):
                pass
        assert (tmp_path / "theirs.json").read_bytes() == before
