"""Finished cells of a study that nobody has trained."""

import json

from study.kept import measuring, result_options


def kept_of(plan, cell, **changes):
    """A finished cell as its file would be read, with figures of nobody."""
    stages = plan.stages_of(cell)
    sets = {"1": {"fid": 0.2, "recognised": 0.9}, "1.5": {"fid": 0.1, "recognised": 0.95}, "2": {"fid": 0.3}}
    figures = {"autoencoder": {"psnr": 27.0 + cell.seed}, "sit": {"by_guidance": sets}}
    made = {
        "format": 1,
        "study": "mnist",
        "row": cell.row,
        "length": cell.length,
        "seed": cell.seed,
        "figures": figures,
        "data": "f00d",
        "device": "2 cores",
        "device_type": "cpu",
        "spent": {stage.name: {"seconds": 90.0, "cpu_seconds": 36.0} for stage in stages},
        "made_from": {stage.name: result_options(stage.config()) for stage in stages},
        "measured": {stage.name: how for stage in stages if (how := measuring(stage))},
    }
    return json.loads(json.dumps(made | changes))
