"""Raw pixels of one detector in, alert-ready DIASources out."""
