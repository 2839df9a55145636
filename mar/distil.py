"""After training: distil what the sampler asks for, the head for model.mar.sampler.head=map, and guidance after it for one_pass=true.

python -m mar distil [--preset digits_fast] [option=value ...]
"""

from __future__ import annotations

from mar.config import MARStageConfig
from mar.distil_guidance import guidance_stage
from mar.distil_head import head_stage
from mar.distil_stage import run


def distil(stage: type[MARStageConfig]) -> None:
    """Distil what the sampler asks for; nothing, where that is neither head nor guidance."""
    config = stage.read(__doc__ or "")
    if config.samples_by_map:
        run(config, head_stage)
    if config.samples_in_one_pass:
        run(config, guidance_stage)
