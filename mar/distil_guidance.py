"""After distil_head: distil guidance into MAR's transformer, which then runs once with the scale as an input, not with and without the class.

    python -m mar distil_guidance [--preset digits] [option=value ...]

Reads the trained generator, its flow map and its latent cache, and writes ``<run_dir>/mar/guided``: ``transformer/`` (the averaged weights of
the transformer's copy and the map's) and the log. Samples are drawn with it by model.mar.sampler.one_pass=true beside head=map.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowprior.errors import entry_point
from mar.config import MARStageConfig
from mar.distil_stage import DistilStage, run
from mar.distillation import GuidanceDistillation


def distil_guidance(stage: type[MARStageConfig]) -> None:
    """Distil guidance into the transformer, beside the head's flow map."""
    run(stage.read(__doc__ or ""), guidance_stage)


def guidance_stage(config: MARStageConfig, saved: dict[str, Any]) -> DistilStage:
    """The stage, for the generator whose ``config.json`` is ``saved``; a :class:`UserError` where it has no flow map."""
    settings, flow_map = config.distil_guidance, config.load_flow_map(saved)
    return DistilStage(
        what="guided transformer",
        settings=settings,
        folder=config.guided_folder,
        product="transformer",
        inputs={"flow map": flow_map.fingerprint},
        make=lambda bundle: GuidanceDistillation(bundle.model, flow_map, bundle.normaliser, settings),
    )


main = entry_point(partial(distil_guidance, MARStageConfig))

if __name__ == "__main__":
    main()
