"""Contracts: events, identity, images, tables, instruments, clock and errors. Imports nothing of ours."""
