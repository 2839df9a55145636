"""The commands of stage 3 with MAR."""

from generation.commands import run
from mar.config import MARStageConfig

if __name__ == "__main__":
    run(MARStageConfig)
