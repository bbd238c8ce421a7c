"""The report of a data release: what was released, how deep, how right and how repeatable."""
