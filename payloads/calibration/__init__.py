"""Calibration production: from bias, dark, flat and spot exposures to what `remove_signature` takes."""
