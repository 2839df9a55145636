import re

import pytest
import torch

from flowprior.run.config import build_config
from flowprior.run.presets import read_preset
from generation.presets import find_family
from simflow.config import PRESETS, SimFlowStageConfig
from simflow.train_simflow import PRESETS as JOINT_PRESETS
from simflow.train_simflow import SimFlowAEConfig

JOINT = sorted(file.stem for file in JOINT_PRESETS.glob("*.yaml"))
ALL = [(kind, file) for kind in (JOINT_PRESETS, PRESETS) for file in sorted(kind.glob("*.yaml"))]


@pytest.mark.parametrize("folder, file", ALL, ids=lambda path: path.stem)
def test_a_preset_is_strictly_a_config_and_its_head_says_the_command_and_what_to_expect(folder, file):
    joint = folder == JOINT_PRESETS
    build_config(SimFlowAEConfig if joint else SimFlowStageConfig, read_preset(file, folder))
    header = "".join(re.findall(r"^#.*\n", file.read_text(), flags=re.M))
    assert f"bash scripts/train_{'simflow' if joint else 'tarflow'}.sh" in header
    assert re.search(r"measured", header)


@pytest.mark.parametrize("name", JOINT)
def test_what_is_trained_together_is_sampled_under_the_presets_of_stage_3_at_the_same_size_and_under_a_like_flow(name):
    joint = build_config(SimFlowAEConfig, read_preset(JOINT_PRESETS / f"{name}.yaml", JOINT_PRESETS))
    file = find_family(name, PRESETS)
    stage = build_config(SimFlowStageConfig, read_preset(file, PRESETS))
    assert stage.data.size == joint.data.size and stage.data.source == joint.data.source
    flow = joint.regulariser.simflow.flow
    assert (flow.width, flow.depths, flow.heads) == tuple(
        getattr(stage.model.tarflow, option) for option in ("width", "depths", "heads")
    )
    assert stage.model.tarflow.noise_std == joint.regulariser.simflow.std and not stage.model.tarflow.sampler.denoise


def test_the_flow_of_imagenet_has_its_number_of_parameters_and_most_of_them_in_the_block_next_to_the_noise():
    config = build_config(SimFlowAEConfig, read_preset(JOINT_PRESETS / "imagenet_simflow.yaml", JOINT_PRESETS))
    simflow, model = config.regulariser.simflow, config.model
    assert (simflow.std, model.tokens, model.channels, config.loss.pixel) == (0.5, 256, 64, "l1")
    with torch.device("meta"):
        flow = simflow.flow.build(model.tokens, model.channels, 1000).flow
    counts = [sum(p.numel() for p in block.parameters()) for block in flow.blocks]
    width, layers = simflow.flow.width, simflow.flow.depths
    layer = 12 * width**2 + 13 * width  # attention, an MLP of four times the width, biases and two norms
    around = model.channels * width + width + 2 * width + 2 * model.channels * (width + 1) + (model.tokens + 1) * width
    classes = [0] * (len(layers) - 1) + [1001 * width]
    assert counts == [depth * layer + around + extra for depth, extra in zip(layers, classes)]
    assert counts[-1] > 0.8 * sum(counts)
