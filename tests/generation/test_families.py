"""Which preset of a generator a name stands for that the generator's room does not have."""

import pytest

from flowprior.errors import UserError
from flowprior.notes import forget_notes
from mar.config import MARStageConfig
from simflow.config import SimFlowStageConfig
from sit.config import SiTStageConfig


@pytest.fixture(autouse=True)
def fresh_notes():
    forget_notes()


@pytest.mark.parametrize("config", [SiTStageConfig, SimFlowStageConfig])
@pytest.mark.parametrize("name, family", [("digits_fast", "digits"), ("imagenet_efficient", "imagenet")])
def test_another_generators_preset_is_refused_with_the_room_that_has_it(config, name, family):
    with pytest.raises(UserError) as refusal:
        config.read("", ["--preset", name])
    line = str(refusal.value)
    assert f"preset '{name}' is of mar" in line and f"'{family}'" in line and f"{config.NAME}/configs" in line


@pytest.mark.parametrize(
    "config, name, family",
    [
        (MARStageConfig, "mnist_imagenet", "mnist"),  # stage 1 has it alone
        (SiTStageConfig, "imagenet_qwen", "imagenet"),  # stages 1 and 2
        (
            SiTStageConfig,
            "digits_simflow",
            "digits",
        ),  # an autoencoder that was trained with a flow, and that flow's own room
        (MARStageConfig, "imagenet_of_ones_own", "imagenet"),  # a folder of runs
    ],
)
def test_an_autoencoders_preset_is_answered_with_the_familys_generator_and_a_note(config, name, family, capsys):
    read = config.read("", ["--preset", name])
    assert read.run_dir == f"runs/{name}" and read.data == config.read("", ["--preset", family]).data
    assert capsys.readouterr().err == (
        f"note: {config.NAME} has no preset '{name}' and reads '{family}', the same for every autoencoder of that family\n"
    )


@pytest.mark.parametrize("name, meant", [("digits_fst", "digits_fast"), ("imagenet_efficent", "imagenet_efficient")])
def test_a_mistyped_preset_is_an_error_that_names_the_one_that_was_meant(name, meant):
    with pytest.raises(UserError, match=f"no preset '{name}'.*choose '{meant}'"):
        MARStageConfig.read("", ["--preset", name])


def test_an_autoencoder_that_no_preset_has_is_of_its_family(capsys):
    assert MARStageConfig.read("", ["--preset", "imagenet_mine"]).run_dir == "runs/imagenet_mine"
    assert "reads 'imagenet'" in capsys.readouterr().err


def test_a_preset_of_the_room_is_read_without_a_word(capsys):
    for config, name in (
        (MARStageConfig, "digits_fast"),
        (SimFlowStageConfig, "digits_simflow"),
        (SiTStageConfig, "mnist"),
    ):
        config.read("", ["--preset", name])
    assert capsys.readouterr().err == ""
