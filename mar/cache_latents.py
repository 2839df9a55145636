"""``python -m mar cache_latents``."""

from functools import partial

from flowprior.errors import entry_point
from generation import cache_latents
from mar.config import MARStageConfig

main = entry_point(partial(cache_latents.main, MARStageConfig))

if __name__ == "__main__":
    main()
