"""The reliability scorecard: real runs that are killed, starved, corrupted and started twice. ``bash scripts/soak.sh --help``."""
