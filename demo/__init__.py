"""A page to play with: a trained run's generators, autoencoder and flow prior in a browser."""
