"""Stage 3 around any generator: cache latents, measure their scale, train a generator on them, sample and evaluate it."""
