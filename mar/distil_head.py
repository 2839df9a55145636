"""After stage 3: distil the trained head of MAR into its flow map, which draws a token in one to four evaluations, guidance included.

    python -m mar.distil_head [--preset digits] [--where-asked] [option=value ...]

Reads the trained generator and its latent cache, and writes ``<run_dir>/mar/flow_map``: ``map/`` (the averaged weights) and the log.
Samples are drawn with it by model.mar.sampler.head=map. With --where-asked nothing is done unless the sampler asks for it.
"""

from __future__ import annotations

from functools import partial

from flowprior.errors import entry_point
from mar.config import MARStageConfig
from mar.distil_stage import DistilStage, read_where_asked, run
from mar.distillation import HeadDistillation


def distil_head(stage: type[MARStageConfig]) -> None:
    """Distil the trained head into its flow map."""
    config = read_where_asked(stage, __doc__ or "", lambda config: config.samples_by_map)
    if config is None:
        return
    settings = config.distil
    described = DistilStage(
        what="flow map",
        settings=settings,
        folder=config.distillation_folder,
        product="map",
        inputs={},
        make=lambda bundle: HeadDistillation(bundle.model, bundle.normaliser, settings),
    )
    run(config, lambda saved: described)


main = entry_point(partial(distil_head, MARStageConfig))

if __name__ == "__main__":
    main()
