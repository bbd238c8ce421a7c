"""The camera: what falls on the focal plane, what the detectors make of it, and the server that hands it out."""
