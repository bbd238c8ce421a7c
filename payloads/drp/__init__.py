"""Data releases: from the raws of many nights to coadds, objects and their light curves."""
