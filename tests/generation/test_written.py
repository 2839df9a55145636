"""What a person wrote is refused or named where it changes nothing, and what cannot be sampled is refused before anything is drawn."""

import sys

import pytest

from flowprior.errors import UserError
from flowprior.notes import forget_notes
from generation import generate
from generation.written import check_written, note_unread
from mar.config import MARStageConfig
from mar.distil_stage import run as run_distillation
from mar.flow_map import FlowMap
from mar.model import MAR, MARConfig
from mar.sampler import SamplerConfig
from simflow.config import SimFlowStageConfig
from sit.config import SiTStageConfig


@pytest.mark.parametrize(
    "config, word, option, value",
    [
        (MARStageConfig, "model.mar.width=64", "model.mar.width", "64"),
        (SiTStageConfig, "model.sit.block=lightning", "model.sit.block", "lightning"),
        (SimFlowStageConfig, "model.tarflow.width=64", "model.tarflow.width", "64"),
        (SimFlowStageConfig, "model={tarflow: {width: 64}}", "model.tarflow.width", "64"),
    ],
)
def test_a_written_option_that_the_trained_generator_has_otherwise_is_refused(config, word, option, value):
    trained = config.read("", []).model
    with pytest.raises(UserError) as refusal:
        check_written(config.read("", [word]), trained, "the generator in here")
    assert (
        option in str(refusal.value) and value in str(refusal.value) and "the generator in here" in str(refusal.value)
    )


def test_neither_a_preset_nor_the_samplers_options_nor_equal_ones_are_refused():
    trained = SiTStageConfig.read("", []).model
    for words in (
        ["--preset", "imagenet"],
        ["model.sit.sampler.steps=3"],
        ["model.sit.positions=learned", "train.steps=3"],
    ):
        check_written(SiTStageConfig.read("", words), trained, "")


@pytest.mark.parametrize(
    "config, words, unread",
    [
        (MARStageConfig, ["sampler.head=map", "sampler.head_evaluations=2", "sampler.solver=heun"], ["solver"]),
        (MARStageConfig, ["sampler.head_evaluations=4", "sampler.head_steps=9"], ["head_steps"]),
        (MARStageConfig, ["sampler.solver=heun", "sampler.head_steps=9"], []),
        (SiTStageConfig, ["sampler.solver=dopri5", "sampler.steps=9", "sampler.rtol=0.1"], ["steps"]),
        (SiTStageConfig, ["sampler.solver=heun", "sampler.rtol=0.1", "sampler.steps=4"], ["rtol"]),
        (SiTStageConfig, ["sampler.solver=sde", "sampler.last_step=0.1", "sampler.steps=4"], []),
        (SimFlowStageConfig, ["sampler.temperature=0.8"], []),
    ],
)
def test_a_written_option_of_the_sampler_that_changes_no_sample_is_named(config, words, unread, capsys):
    forget_notes()
    name = config.read("", []).model.name
    note_unread(config.read("", [f"model.{name}.{word}" for word in words]))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == [f"model.{name}.sampler.{option}" for option in unread]


def mar_with_map() -> MAR:
    sizes = dict(width=16, encoder_depth=1, decoder_depth=1, heads=2, buffer_tokens=2, head_width=16, head_depth=1)
    sampler = SamplerConfig(ar_steps=2, head="map", head_evaluations=1)
    model = MAR(MARConfig(**sizes, sampler=sampler), 4, 3, 2)
    model.flow_map = FlowMap(model.head, (1.0, 2.0))
    return model.eval()


def test_a_scale_that_the_map_does_not_serve_is_refused_before_the_sets_that_it_serves(tmp_path, monkeypatch):
    config = MARStageConfig.read("", [f"run_dir={tmp_path}", "sample.cfg=[1,1.5,5]"])

    class Drawer:
        bundle = type("Bundle", (), {"model": mar_with_map()})

    monkeypatch.setattr(generate, "load_drawer", lambda *_: (Drawer, {}))
    monkeypatch.setattr(generate, "choose_shares", lambda *_: None)
    drawn = []
    monkeypatch.setattr(generate, "generate_set", lambda config, drawer, cfg, *_: drawn.append(cfg))
    monkeypatch.setattr(generate, "protocol", lambda *_: {})
    monkeypatch.setattr(generate, "choose_shares", lambda *_: type("Shares", (), {"description": ""}))
    with pytest.raises(UserError, match="guidance scales from 1 to 2, not 5"):
        generate.draw_sets(config, None)
    assert drawn == []
    config.sample.cfg = (1, 1.5)
    generate.draw_sets(config, None)
    assert drawn == [1, 1.5]


@pytest.mark.parametrize(
    "words, section",
    [
        (["distil.guidance=[1,2]"], "distil.guidance=[1,3]"),
        (["model.mar.sampler.one_pass=true", "distil_guidance.guidance=[0.5,2]"], "distil_guidance.guidance=[0.5,3]"),
    ],
)
def test_nothing_is_distilled_for_fewer_scales_than_are_sampled(tmp_path, words, section):
    config = MARStageConfig.read("", ["--preset", "digits_fast", f"run_dir={tmp_path}", "sample.cfg=[1,3]", *words])
    with pytest.raises(UserError) as refusal:
        run_distillation(config, lambda *_: None)
    assert f"write {section}" in str(refusal.value) and not list(tmp_path.iterdir())


def test_presets_distil_for_the_scales_that_they_sample_at():
    for name in ("digits_fast", "imagenet_fast"):
        config = MARStageConfig.read("", ["--preset", name])
        config.check_distilled_guidance()
        config.sample.cfg = (*config.sample.cfg, config.distil.guidance[1] + 1)
        with pytest.raises(UserError):
            config.check_distilled_guidance()


@pytest.mark.parametrize(
    "config, words, regularisers, script",
    [
        (MARStageConfig, [], ["flow"], "train_mar.sh"),
        (SiTStageConfig, [], ["kl"], "train_sit.sh"),
        (SimFlowStageConfig, [], ["flow"], "train_tarflow.sh"),
        (SimFlowStageConfig, ["--preset", "digits_simflow"], ["kl"], "train_tarflow.sh"),
        (SimFlowStageConfig, ["--preset", "digits_simflow"], ["simflow", "vavae"], "train_simflow.sh"),
    ],
)
def test_the_script_that_makes_a_missing_generator_is_the_rooms_own_for_that_autoencoder(
    config, words, regularisers, script
):
    remedy = config.read("", [*words, "run_dir=runs/x"]).makes_generator(regularisers)
    assert f"`bash scripts/{script} run_dir=runs/x`" in remedy


@pytest.mark.parametrize(
    "config, preset, script",
    [
        (SimFlowStageConfig, "digits_simflow", "train_simflow.sh"),
        (SimFlowStageConfig, "digits", "train_ae.sh"),
        (MARStageConfig, "digits_simflow", "train_simflow.sh"),
        (MARStageConfig, "digits", "train_ae.sh"),
    ],
)
def test_the_script_that_makes_a_missing_autoencoder_takes_the_same_preset(
    config, preset, script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["x", "--preset", preset, f"run_dir={tmp_path}"])
    with pytest.raises(UserError) as refusal:
        generate.main(config)
    assert f"run `bash scripts/{script} run_dir={tmp_path}` first, with the same PRESET (its family's" in str(
        refusal.value
    )
