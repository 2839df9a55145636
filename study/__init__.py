"""The study: every way of shaping latents on one data set, over seeds and lengths, as runs that go on, one JSON file each, and tables."""
