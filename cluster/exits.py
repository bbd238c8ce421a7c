"""How a command ends: its exit code, or one line that says what was wrong."""

import sys
from collections.abc import Callable

import typer
from pydantic import ValidationError

from schemas.errors import PachonError


def exit_with(command: Callable[[], int]) -> None:
    """End with the command's exit code, or with one line that says what was wrong."""
    try:
        code = command()
    except PachonError as error:
        code = complain(str(error))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        code = complain(f"{option} {first['input']!r}: {first['msg']}")
    except BaseExceptionGroup as group:
        known = group.subgroup(PachonError)
        if known is None:
            raise
        code = complain(str(_leaf(known)))
    raise typer.Exit(code)


def complain(message: str) -> int:
    """One line on stderr."""
    sys.stderr.write(f"pachon: {' '.join(message.split())}\n")
    return 2


def _leaf(group: BaseExceptionGroup[PachonError]) -> BaseException:
    """The first error of a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
