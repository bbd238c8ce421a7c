import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass through, as a night's output folder usually is and pytest's is not."""
    folder = Path(tempfile.mkdtemp(prefix="pachon-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
