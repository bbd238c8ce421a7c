"""Hosts in this process: all pools of an inline run; on a cluster the few that only keep order."""

from actors.visit_keeper import VisitKeeper
from cluster.host import Host, Outcome
from cluster.site import Site
from cluster.topology import POOLS
from schemas.events import Event


class InlineHosts:
    """One host a pool, called directly."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self._hosts = hosts

    @classmethod
    async def build(cls, site: Site, *, all_pools: bool) -> "InlineHosts":
        """Build the hosts of all pools, or of those without processes of their own."""
        pools = [p for p in POOLS.values() if all_pools or not p.own_process]
        return cls({p.name: Host(await p.make(site), p.name) for p in pools})

    @property
    def keeper(self) -> VisitKeeper:
        """The visits' keeper, which is also asked what is overdue."""
        actor = self._hosts["visit_keeper"].actor
        assert isinstance(actor, VisitKeeper)
        return actor

    def __contains__(self, pool: str) -> bool:
        """Whether the pool is hosted here."""
        return pool in self._hosts

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:  # noqa: ARG002 - one host a pool
        """Have the pool's actor react."""
        return await self._hosts[pool].handle(event)

    async def replace(self, pool: str, lane: int) -> None:
        """In one process nothing can be replaced. The bus counts the attempt and calls again."""

    async def back(self, pool: str, lane: int) -> None:
        """Nor does anything die."""
