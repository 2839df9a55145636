"""Which of a generator's parameters decay, and what becomes of runs that were started when the flow head did."""

import pytest
import torch
import yaml
from torch import nn

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config, to_dict
from flowprior.run.presets import read_preset
from flowprior.run.run_folder import RunFolder
from flowprior.training.optim import make_optimizer
from generation.generator import Generator, GeneratorObjective
from mar.config import PRESETS, MARStageConfig


def groups(model: Generator, channels: int, optim) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that decay, and those that do not, as stage 3's optimiser holds them."""
    optimizer = make_optimizer(GeneratorObjective(model, LatentNormaliser(channels)), optim)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (optim.weight_decay, 0.0)
    return decayed["params"], others["params"]


def test_of_mar_b_the_head_35_766_304_of_207_517_216_parameters_does_not_decay_nor_do_biases_and_norms():
    preset = build_config(MARStageConfig, read_preset(PRESETS / "imagenet.yaml", PRESETS))
    assert preset.optim.weight_decay == 0.02
    with torch.device("meta"):
        model = preset.model.mar.build(tokens=64, channels=32, num_classes=1000)
    decayed, others = groups(model, 32, preset.optim)
    head = {id(p) for p in model.head.parameters()}
    assert sum(p.numel() for p in others if id(p) in head) == 35_766_304
    assert sum(p.numel() for p in [*decayed, *others]) == 207_517_216
    vectors = [p for p in model.parameters() if p.dim() < 2 and id(p) not in head]
    assert sum(p.numel() for p in others) == 35_766_304 + sum(p.numel() for p in vectors)
    assert all(p.dim() >= 2 and id(p) not in head for p in decayed)
    assert any(p is model.decoder_positions for p in decayed)  # as published: positions and tokens do


def test_another_generator_says_for_itself_what_does_not_decay():
    class Patches(Generator):
        def __init__(self):
            super().__init__()
            self.positions, self.body = nn.Parameter(torch.zeros(1, 4, 3)), nn.Linear(3, 3)

        @property
        def no_decay(self):
            return [self.positions]

        def loss(self, latents, labels, random): ...

        def sample(self, labels, seeds, cfg): ...

    model = Patches()
    decayed, others = groups(model, 3, build_config(MARStageConfig, {"optim": {"weight_decay": 0.1}}).optim)
    assert [p is model.body.weight for p in decayed] == [True]
    assert {id(p) for p in others} == {id(model.positions), id(model.body.bias)}


SMALL = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "buffer_tokens": 2, "head_width": 12}


def stage(folder, **options) -> MARStageConfig:
    values = {"run_dir": str(folder), "model": {"mar": {**SMALL, "head_depth": 1, **options}}}
    return build_config(MARStageConfig, values | {"optim": {"weight_decay": 0.02}})


@pytest.fixture
def begun(tmp_path) -> RunFolder:
    """A run of before the head was exempt, with a checkpoint."""
    folder, config = RunFolder(tmp_path, "mar"), stage(tmp_path)
    folder.open(config, World())
    values = to_dict(config)
    del values["model"]["mar"]["decay_head"]
    folder.config_file.write_text(yaml.safe_dump(values))
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    return folder


def test_a_run_whose_head_decayed_says_in_one_line_how_to_go_on_with_it(begun, tmp_path):
    with pytest.raises(UserError, match="model.mar.decay_head=true goes on with it") as refusal:
        begun.open(stage(tmp_path), World())
    assert "\n" not in str(refusal.value)


def test_with_that_option_it_goes_on_with_the_groups_that_it_had(begun, tmp_path):
    config = stage(tmp_path, decay_head=True)
    begun.open(config, World())
    model = config.model.mar.build(4, 3, 5)
    decayed, others = groups(model, 3, config.optim)
    assert [id(p) for p in decayed] == [id(p) for p in model.parameters() if p.dim() >= 2]
    assert [id(p) for p in others] == [id(p) for p in model.parameters() if p.dim() < 2]
