"""The commands of stage 3 with MAR."""

from generation.commands import run
from mar.config import MARStageConfig
from mar.distil import distil
from mar.distil_guidance import distil_guidance
from mar.distil_head import distil_head

if __name__ == "__main__":
    run(MARStageConfig, {"distil": distil, "distil_head": distil_head, "distil_guidance": distil_guidance})
