"""Kernels that every payload shares: background, PSF, WCS, warp, convolution, detection, measurement."""
