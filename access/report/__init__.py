"""The report of a night: what happened, how fast, and how right."""
