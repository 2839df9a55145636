"""``python -m mar evaluate``."""

from functools import partial

from flowprior.errors import entry_point
from generation import evaluate
from mar.config import MARStageConfig

main = entry_point(partial(evaluate.main, MARStageConfig))

if __name__ == "__main__":
    main()
