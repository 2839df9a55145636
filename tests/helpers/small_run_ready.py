"""For a fork server to load before it forks: everything that a small run imports, some of it only when an optimiser is made."""

import small_run
from small_run import World

small_run.make_loop(None, small_run.small_config(), World())
