"""What happens in a step: loop, optimiser and schedule, EMA, checkpoint, randomness, precision, compilation."""
