"""What a run is on disk: config, run folder, lock, files and what they were made from, log, hub."""
