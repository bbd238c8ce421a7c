"""Batch: quantum graphs of lsst-pipe-base, and BPS's jobs, on the Ray cluster."""
