"""`pachon dead-letters`: what came from outside and could not be used, for those who can mend it."""

import asyncio
import time
from collections.abc import Sequence

from rich.console import Console

from backbone.dead_letters import DeadLetter, DeadLetterTopic
from backbone.registry_client import RegistryClient
from backbone.sal import decoded
from cluster.told_tables import add, plain_table, say
from schemas.errors import BadData, PachonError

_ROW = 16
"""Bytes in a row of hexadecimal digits."""


def show_all(kafka: str, console: Console) -> int:
    """List them; 0."""
    letters = DeadLetterTopic(kafka).read()
    table = plain_table("", "number", "sent, UTC", "state", "where it was, and why it is here")
    for one in letters:
        add(table, one.number, _utc(one.sent_ms), _state(one), f"{_where(one)}: {one.reason}")
    if letters:
        console.print(table)
    waiting = sum(1 for letter in letters if not letter.resubmitted)
    say(console, f"{len(letters)} dead letters, {waiting} of them not resubmitted")
    return 0


def show_one(kafka: str, registry: str, number: int, console: Console) -> int:
    """Show one, decoded as far as it can be; 0. Raises BadData for a number that there is none of."""
    (letter,) = _chosen(DeadLetterTopic(kafka).read(), [number])
    told = {
        "number": str(letter.number), "where it was": _where(letter), "sent, UTC": _utc(letter.sent_ms),
        "refused, UTC": _utc(letter.refused_ms), "state": _state(letter), "why": letter.reason,
        "key": repr(letter.key), "value": "null" if letter.value is None else f"{len(letter.value)} bytes",
    }  # fmt: skip
    told |= {f"header {name}": repr(value) for name, value in letter.headers}
    fields = [f"{name:14s} {value}" for name, value in told.items()]
    for line in [*fields, *asyncio.run(_content(letter.value or b"", registry))]:
        say(console, line)
    return 0


def resubmit(kafka: str, numbers: Sequence[int], *, everything: bool, console: Console) -> int:
    """Send letters to where they came from; 0 if all were acknowledged, else 1.

    With `everything`, those that were not sent before. Raises BadData for a number that there is none of.
    """
    if bool(numbers) == everything:
        raise BadData("say which: numbers of dead letters, or --all")
    topic = DeadLetterTopic(kafka)
    letters = topic.read()
    chosen = [letter for letter in letters if not letter.resubmitted] if everything else _chosen(letters, numbers)
    failed = [letter for letter in chosen if not _sent(topic, letter, console)]
    say(console, f"{len(chosen) - len(failed)} resubmitted, {len(failed)} not")
    return 1 if failed else 0


def _sent(topic: DeadLetterTopic, letter: DeadLetter, console: Console) -> bool:
    try:
        topic.resubmit(letter)
    except PachonError as error:
        say(console, f"{letter.number} not resubmitted: {error}")
        return False
    return True


def _chosen(letters: Sequence[DeadLetter], numbers: Sequence[int]) -> list[DeadLetter]:
    by_number = {letter.number: letter for letter in letters}
    if unknown := [str(number) for number in numbers if number not in by_number]:
        known = ", ".join(map(str, by_number)) or "none at all"
        raise BadData(f"no dead letter has the number {', '.join(unknown)}; there are {known}")
    return [by_number[number] for number in dict.fromkeys(numbers)]


def _where(letter: DeadLetter) -> str:
    return f"{letter.topic} {letter.partition}:{letter.offset}"


def _state(letter: DeadLetter) -> str:
    again = "" if letter.again_after is None else f"again, after {letter.again_after}"
    return ", ".join(word for word in ("resubmitted" if letter.resubmitted else "", again) if word) or "waits"


def _utc(posix_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(posix_ms / 1000))


async def _content(value: bytes, registry: str) -> list[str]:
    """The record, or why there is none; and the bytes."""
    lines = ["not decoded: no --registry was given"]
    if registry:
        async with RegistryClient(registry) as client:
            try:
                record = await decoded(value, client)
                lines = [f"  {name:24s} {content!r}" for name, content in record.items()]
            except PachonError as error:
                lines = [f"not decoded: {error}"]
    return [*lines, *_dump(value)]


def _dump(value: bytes) -> list[str]:
    """In hex, with the characters beside it."""
    rows = [(at, value[at : at + _ROW]) for at in range(0, len(value), _ROW)]
    return [f"{at:06x}  {row.hex(' '):47s}  {''.join(map(_character, row))}" for at, row in rows]


def _character(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else "."
