"""After train_mar: distil the trained flow head into its flow map, which draws a token in one to four evaluations, guidance included.

    python -m mar distil_head [--preset digits] [option=value ...]

Reads the trained generator and its latent cache, and writes ``<run_dir>/mar/flow_map``: ``map/`` (the map's averaged weights) and the log.
Samples are drawn with it by model.mar.sampler.head=map.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from flowprior.errors import entry_point
from mar.config import MARStageConfig
from mar.distil_stage import DistilStage, run
from mar.distillation import HeadDistillation


def distil_head(stage: type[MARStageConfig]) -> None:
    """Distil the trained head into its flow map."""
    run(stage.read(__doc__ or ""), head_stage)


def head_stage(config: MARStageConfig, saved: dict[str, Any]) -> DistilStage:
    """The stage, for the generator whose ``config.json`` is ``saved``."""
    return DistilStage(
        what="flow map",
        settings=config.distil,
        folder=config.distillation_folder,
        product="map",
        inputs={},
        make=lambda bundle: HeadDistillation(bundle.model, bundle.normaliser, config.distil),
    )


main = entry_point(partial(distil_head, MARStageConfig))

if __name__ == "__main__":
    main()
