"""An autoregressive normalizing flow over latent tokens: a generator on cached latents, or trained jointly with the autoencoder."""
