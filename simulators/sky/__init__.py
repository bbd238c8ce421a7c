"""The sky: stars, galaxies, variables, transients, minor planets; made from a seed, wherever one looks."""
