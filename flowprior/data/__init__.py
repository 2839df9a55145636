"""Image sources and the embedded data, feature tables, the order of samples, and the latent cache."""
