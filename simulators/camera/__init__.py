"""The camera: what falls on the focal plane, what detectors make of it, and the server of the pixels."""
