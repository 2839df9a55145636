"""The commands of stage 3 with SiT."""

from generation.commands import run
from sit.config import SiTStageConfig

if __name__ == "__main__":
    run(SiTStageConfig)
