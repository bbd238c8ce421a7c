"""A process that is killed in the midst of its work, as `kill -9` does."""

import os
import signal
import sys


def die_at(count: int) -> None:
    """Kill this process at the `count`th file that it opens or renames from now on."""
    left = count

    def watch(event: str, _: object) -> None:
        nonlocal left
        if event in {"open", "os.rename"}:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
