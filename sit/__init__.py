"""SiT: a transformer that carries all latent tokens of an image from noise to data together."""
