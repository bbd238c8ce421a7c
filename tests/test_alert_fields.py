"""What the documents say of an alert's fields is so."""

import pytest

from tests.make_alert_fields import ALWAYS, BEGIN, END, NULL, PAGE, Seen, disagreements, seen, table


@pytest.fixture(scope="module")
def actual() -> Seen:
    return seen()


def test_every_field_of_an_alert_is_filled_as_is_said_of_it(actual: Seen) -> None:
    assert disagreements(actual) == []


def test_the_documents_say_so() -> None:
    """If they do not: `python -m tests.make_alert_fields`."""
    assert PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0] == table()


def test_a_field_that_is_filled_or_not_against_what_is_said_is_named(actual: Seen) -> None:
    changed = {record: dict(fields) for record, fields in actual.items()}
    changed["alert"]["target_name"], changed["diaSource"]["psfFlux"] = ALWAYS, NULL
    changed["diaObject"]["u_psfFluxMean"] = NULL
    assert [message.partition(":")[0] for message in disagreements(changed)] == [
        "alert.target_name", "diaSource.psfFlux", "diaObject.u_psfFluxMean",
    ]  # fmt: skip
