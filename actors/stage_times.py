"""Where the time goes: CPU seconds by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """CPU seconds of this thread, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what passes to a stage."""
        started = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - started
