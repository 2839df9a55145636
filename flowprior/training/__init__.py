"""What each trainer stands on: config, distributed, checkpoint, loop, optimiser and schedule, EMA, reporting."""
