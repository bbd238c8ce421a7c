import numpy as np

from access.report.witnessed import SEEN_DTYPE, witnessed
from backbone.l1 import ACKNOWLEDGEMENT_DTYPE
from schemas.clock import NightClock

CLOCK = NightClock(0.0, 0.0, 2.0)
ANSWERS = np.array(
    [(1, 94, 30, 100.0, 110.0), (1, 94, 10, 100.0, 110.0), (1, 94, 20, 100.0, np.nan)], ACKNOWLEDGEMENT_DTYPE
)


def saw(*rows: tuple[int, float, bytes]) -> np.ndarray:
    return np.array(list(rows), SEEN_DTYPE)


def test_a_consumer_that_saw_all_once_saw_the_whole() -> None:
    report = witnessed(saw((10, 105.0, b"a"), (30, 106.0, b"b")), ANSWERS, CLOCK)
    assert (report.messages, report.alerts) == (2, 2)
    assert (report.missing, report.unknown, report.differing) == (0, 0, 0)
    assert (report.within_60s, report.max_s) == (1.0, 3.0)
    assert report.whole


def test_a_message_again_is_no_other_alert_and_the_first_counts() -> None:
    seen = saw((10, 105.0, b"a"), (30, 106.0, b"b"), (10, 999.0, b"a"), (20, 300.0, b"c"))
    report = witnessed(seen, ANSWERS, CLOCK)
    assert (report.messages, report.alerts, report.max_s) == (4, 3, 100.0)
    assert report.within_60s == 2 / 3
    assert report.whole


def test_other_bytes_an_unknown_alert_and_one_that_never_came_are_each_told() -> None:
    report = witnessed(saw((10, 105.0, b"a"), (10, 106.0, b"b"), (-1, 107.0, b"x")), ANSWERS, CLOCK)
    assert (report.differing, report.unknown, report.missing) == (1, 1, 1)
    assert not report.whole


def test_who_saw_nothing_misses_what_was_acknowledged() -> None:
    report = witnessed(saw(), ANSWERS, CLOCK)
    assert (report.messages, report.missing, report.within_60s, report.max_s) == (0, 2, None, None)
