"""Stages 1 and 2: the flow prior over target features, and the autoencoder whose latents it shapes."""
