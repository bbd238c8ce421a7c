"""An alert on one line."""

from typing import Any

from access.stamp_picture import or_dash

Record = dict[str, Any]
"""A decoded alert."""


def line(alert: Record) -> str:
    """What a person wants to know of an alert, on one line."""
    source = alert["diaSource"]
    name = f"SSObject {source['ssObjectId']}" if source["ssObjectId"] else f"DIAObject {source['diaObjectId']}"
    history = len(alert["prvDiaSources"] or ())
    reliability = source["reliability"]
    return (
        f"{alert['diaSourceId']}  MJD {source['midpointMjdTai']:.5f}  {source['band']}  "
        f"ra {source['ra']:9.5f} dec {source['dec']:+9.5f}  flux {or_dash(source['psfFlux'], '9.0f')} nJy  "
        f"S/N {or_dash(source['snr'], '6.1f')}  reliability {or_dash(reliability, '.2f')}  {name}  history {history}"
    )
