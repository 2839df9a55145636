"""``python -m mar train``."""

from functools import partial

from flowprior.errors import entry_point
from generation import train
from mar.config import MARStageConfig

main = entry_point(partial(train.main, MARStageConfig))

if __name__ == "__main__":
    main()
