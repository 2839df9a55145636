"""MAR, a generator of stage 3: a masked autoregressive transformer with a flow head, and its sampler."""
