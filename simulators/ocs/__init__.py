"""The observatory control system: plans a night, announces visits, drives the shutter, tells the DAQ."""
