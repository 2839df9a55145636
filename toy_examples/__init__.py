"""The paper's two-dimensional experiments: a flow of a toy distribution, and latents that are aligned to it."""
