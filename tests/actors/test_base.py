import pytest

from actors.base import Actor, handler_name
from cluster.topology import POOLS
from schemas.events import EVENTS


def test_a_handler_of_no_event_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="on_raw_redy"):
        type("Misspelt", (Actor,), {"on_raw_redy": None})


def test_handlers_are_named_after_their_events() -> None:
    assert handler_name("DiaSourcesReady") == "on_dia_sources_ready"


def test_every_event_but_the_ends_and_the_beginnings_has_somebody_who_reacts() -> None:
    understood = set().union(*(pool.actor.understands for pool in POOLS.values()))
    told_only = {
        "IntegrationStarted", "VisitRefused", "RawNotArchived", "CaughtUp", "LiteAlertsSent",
        "NoticeSent", "NoticeFailed",
    }  # fmt: skip
    assert set(EVENTS) - understood == told_only
