"""A door to alert production for pixels without the system: any two FITS images of one sky."""
