"""Which units of work are ready, of a graph of them."""

import networkx as nx  # type: ignore[import-untyped]
from lsst.pipe.base.graph_walker import GraphWalker

from cluster.batch.work import Key

LOOSE = "loose"
"""The attribute of an edge whose first unit must have ended, whatever became of it, before the second begins."""


class Walker(GraphWalker[Key]):
    """Walks a graph as pipe_base does; what fails blocks nothing by a loose edge. Consumes the graph."""

    def fail(self, key: Key) -> list[Key]:
        """Give up a unit; what is blocked by that."""
        edges = self._xgraph
        lost = {key, *nx.descendants(nx.subgraph_view(edges, filter_edge=self._holds), key)}
        freed = {after for before in lost for after in edges.succ[before]} - lost
        edges.remove_edges_from([(before, after) for before in lost for after in freed])
        blocked = super().fail(key)
        self._ready |= {each for each in freed if self._incomplete.isdisjoint(edges.pred[each])}
        return blocked

    def _holds(self, before: Key, after: Key) -> bool:
        return not self._xgraph.edges[before, after].get(LOOSE)
