"""Losses between images: pixels and, where weights can be had, perceptual."""
