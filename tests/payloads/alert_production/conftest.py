"""One simulated pair of 1024 x 1024 pixels, subtracted once for all tests that look at the result."""

import pytest

from payloads.alert_production.detect import Detections, detect
from payloads.alert_production.measure import measure
from payloads.alert_production.subtract import Subtraction, subtract, warp_template
from schemas.tables import Table
from tests.payloads.alert_production.pairs import Pair, make_pair

VISIT, DETECTOR, PROCESSED = 2026070500004, 94, 5.2e9 + 30.0


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair(1024, 11, injected=60, faded=8, trails=0, density=1.5, snr=(6.0, 60.0))


@pytest.fixture(scope="session")
def subtraction(pair: Pair) -> Subtraction:
    return subtract(pair.science, warp_template(pair.template, pair.science))


@pytest.fixture(scope="session")
def detections(subtraction: Subtraction) -> Detections:
    return detect(subtraction)


@pytest.fixture(scope="session")
def sources(pair: Pair, subtraction: Subtraction, detections: Detections) -> Table:
    return measure(detections, subtraction, pair.science, visit=VISIT, detector=DETECTOR, processed=PROCESSED)
