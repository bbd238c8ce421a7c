import pytest

from simulators.sky.sky import Sky


@pytest.fixture(scope="session")
def sky() -> Sky:
    return Sky(20260705)
