"""What could not be used goes to the dead letters, where operators find it."""

from collections.abc import Sequence

from actors.base import Actor
from backbone.dead_letters import DeadLetterSink
from schemas.events import Event, InputRefused


class DeadLetterOffice(Actor):
    """Hands each refused input to the sink; the reading of the input goes on meanwhile, the journal having it."""

    def __init__(self, *, sink: DeadLetterSink) -> None:
        self._sink = sink

    async def on_input_refused(self, event: InputRefused) -> Sequence[Event]:
        """Keep it; once more if it is not sure that it is kept."""
        await self._sink.keep(event)
        return []
