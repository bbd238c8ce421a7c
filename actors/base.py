"""What an actor is: a plain class with one `on_<event>` method for each event it understands."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from schemas.events import EVENTS, Event

Reaction = Callable[[Event], Awaitable[Sequence[Event]]]

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def handler_name(kind: str) -> str:
    """`on_raw_ready` of `RawReady`."""
    return "on_" + _CAPITAL.sub("_", kind).lower()


_KIND_OF = {handler_name(kind): kind for kind in EVENTS}


class Actor:
    """Base of the actors: finds the handlers, and refuses a name that is no event's.

    Handlers are `async def on_<event>(self, event) -> Sequence[Event]`: what they return follows from the event.
    They may be called again for the same event, also on a new actor with nothing in memory.
    """

    understands: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        """Collect the kinds of events that the class has handlers for."""
        names = [name for name in dir(cls) if name.startswith("on_")]
        unknown = [name for name in names if name not in _KIND_OF]
        if unknown:
            raise TypeError(f"{cls.__name__} has handlers of no event: {', '.join(unknown)}")
        cls.understands = frozenset(_KIND_OF[name] for name in names)

    async def react(self, event: Event) -> Sequence[Event]:
        """What follows from an event. Raises AttributeError for a kind that it does not understand."""
        handler: Reaction = getattr(self, handler_name(event.kind))
        return await handler(event)
