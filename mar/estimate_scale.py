"""``python -m mar estimate_scale``."""

from functools import partial

from flowprior.errors import entry_point
from generation import estimate_scale
from mar.config import MARStageConfig

main = entry_point(partial(estimate_scale.main, MARStageConfig))

if __name__ == "__main__":
    main()
