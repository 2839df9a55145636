"""Stage 3: cache latents, measure their scale, train a generator on them, sample and evaluate it."""
