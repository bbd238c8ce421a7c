"""Small nights to report on."""

from pathlib import Path

import pytest

from tests.access.small_night import SmallNight, good_night


@pytest.fixture
def empty_night(tmp_path: Path) -> SmallNight:
    return SmallNight(tmp_path)


@pytest.fixture
async def good(tmp_path: Path) -> SmallNight:
    return await good_night(tmp_path)
