"""Batch: quantum graphs of lsst-pipe-base on the Ray cluster."""
