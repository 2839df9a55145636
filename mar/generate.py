"""``python -m mar generate``."""

from functools import partial

from flowprior.errors import entry_point
from generation import generate
from mar.config import MARStageConfig

main = entry_point(partial(generate.main, MARStageConfig))

if __name__ == "__main__":
    main()
