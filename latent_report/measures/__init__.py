"""Measures of latents ``(N, T, C)``, one module per question; each a function of tensors with its closed form or source."""
