"""Losses between images: pixels, perceptual distance, and a discriminator's judgement."""
