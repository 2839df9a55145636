import subprocess
import sys

import pytest

from flowprior.errors import UserError
from flowprior.metrics.registry import choose_metrics
from flowprior.run.config import build_config
from flowprior.run.presets import config_from_command_line
from generation.presets import find_family
from mar.config import PRESETS, MARStageConfig
from tokenizer.config import AEConfig

SIZES = {"data": {"size": 32}, "model": {"image_size": 32}}


@pytest.mark.parametrize(
    "extractor, reference_images, labels, missing",
    [
        ("digits", True, True, set()),
        ("inception", True, True, {"recognised"}),
        ("digits", False, True, {"precision_recall"}),
        ("digits", True, False, {"recognised"}),
    ],
)
def test_without_names_all_metrics_that_apply_are_chosen(extractor, reference_images, labels, missing):
    chosen = choose_metrics((), extractor, reference_images=reference_images, labels=labels)
    assert set(chosen) == {"fid", "inception_score", "precision_recall", "recognised"} - missing


@pytest.mark.parametrize(
    "values, words",
    [
        ({"extractor": "vgg"}, "'vgg'.*digits, mnist, inception"),
        ({"metrics": ["fidd"]}, "'fidd'.*did you mean 'fid'"),
        ({"metrics": ["recognised"], "extractor": "inception"}, "'recognised' goes with the extractor digits"),
        (
            {"metrics": ["precision_recall"], "reference": "fid_stats/digits.npz", "extractor": "digits"},
            "'precision_recall' compares single images",
        ),
        ({"samples": "pictures"}, "samples is empty, generate, or the path"),
        ({"online_count": -1}, "0 or more"),
        ({"online_count": 1}, "0 or at least 2"),
        ({"reference": "val"}, "reference is data, or the path of an .npz"),
        ({"half_half_splits": -1}, "0 or more"),
    ],
)
def test_the_generators_config_refuses_what_cannot_be_measured(values, words, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=f"'evaluate'.*{words}"):
        build_config(MARStageConfig, {"evaluate": values})


def test_the_autoencoders_config_refuses_an_unknown_extractor_and_allows_none():
    with pytest.raises(UserError, match="'evaluate'.*'vgg'"):
        build_config(AEConfig, SIZES | {"evaluate": {"extractor": "vgg"}})
    assert build_config(AEConfig, SIZES).evaluate.extractor == ""


def test_the_configs_are_checked_without_torch_fidelity():
    code = "import sys, mar.config, generation.config; generation.config.EvaluateConfig('digits'); print('torch_fidelity' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize("name", ["digits", "folder", "imagenet", "imagenet_qwen", "imagenet_qwen_pca"])
def test_every_preset_and_every_member_of_a_family_is_read(name):
    config = config_from_command_line(MARStageConfig, PRESETS, "", ["--preset", name], find_family)
    assert config.run_dir == f"runs/{name}"


def test_the_imagenet_preset_trains_the_papers_generator_for_400_epochs():
    config = config_from_command_line(MARStageConfig, PRESETS, "", ["--preset", "imagenet"])
    steps_an_epoch = 1_281_167 // config.train.global_batch
    assert config.train.steps == 400 * steps_an_epoch and config.optim.warmup_steps == 100 * steps_an_epoch
    assert config.optim.lr == pytest.approx(1e-4 * config.train.global_batch / 256)
    assert (config.model.mar.width, config.model.mar.head_width, config.model.mar.pairs) == (768, 1024, 4)
    assert config.optim.betas == (0.9, 0.999) and config.optim.ema_decay == 0.9999


def test_a_name_outside_the_families_is_no_preset():
    with pytest.raises(UserError, match="no preset 'bogus_qwen'"):
        config_from_command_line(MARStageConfig, PRESETS, "", ["--preset", "bogus_qwen"], find_family)
