import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowprior.errors import UserError
from flowprior.run.config import apply_overrides, build_config, list_options
from mar.config import MARStageConfig
from sit.config import SiTStageConfig
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import FlowPriorConfig

NAMES = ["train_flowhead", "train_ae", "train_mar", "train_sit"]


def refused(result) -> str:
    """The one line that a refused command says, after what its images are and the progress bar of what it had begun."""
    assert result.returncode == 2, result.stderr
    [line] = [line for line in result.stderr.splitlines() if line and not re.search(r"\d%\|| has \d+ images of ", line)]
    assert line.startswith("error: ") and "Traceback" not in line
    return line


@pytest.mark.parametrize("name, config", zip(NAMES, [FlowPriorConfig, AEConfig, MARStageConfig, SiTStageConfig]))
def test_help_lists_every_field_with_its_default(scripts, name, config):
    shown = scripts.run(name, "--help", tiny=False)
    assert shown.returncode == 0 and not shown.stderr
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.startswith("  ") and line.split()}
    for option, default, meaning in list_options(config):
        assert meaning in rows[option] and rows[option].endswith(f"[{default}]")


@pytest.mark.parametrize(
    "name, script",
    [
        ("train_ae", "scripts/train_flowhead.sh"),
        ("train_mar", "scripts/train_ae.sh"),
        ("train_sit", "scripts/train_ae.sh"),
    ],
)
def test_a_stage_before_the_one_that_it_needs_names_the_script_to_run_and_writes_nothing(
    scripts, tmp_path, name, script
):
    run_dir = tmp_path / "run"
    assert script in refused(scripts.run(name, run_dir=run_dir))
    assert not run_dir.exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_preset_is_answered_with_those_that_there_are(scripts, tmp_path, name):
    line = refused(scripts.run(name, run_dir=tmp_path / "run", PRESET="bogus"))
    assert "bogus" in line and "digits" in line and "folder" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, word, unknown, nearest",
    [
        ("train_flowhead", "optim.Ir=1e-3", "optim.Ir", "optim.lr"),
        ("train_ae", "regulariser.flow.wieght=1", "regulariser.flow.wieght", "regulariser.flow.weight"),
        ("train_mar", "model.mar.head_dept=1", "model.mar.head_dept", "model.mar.head_depth"),
        ("train_mar", "trian.steps=1", "trian", "train"),
        ("train_mar", "model.sit.width=8", "model.sit", "model.mar"),
        ("train_sit", "model.mar.width=8", "model.mar", "model.sit"),
        ("train_sit", "model.sit.sampler.head_steps=1", "model.sit.sampler.head_steps", "model.sit.sampler.steps"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(scripts, tmp_path, name, word, unknown, nearest):
    line = refused(scripts.run(name, word, run_dir=tmp_path / "run"))
    assert f"'{unknown}'" in line and nearest in line.split(unknown, 1)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "word",
    [
        "train.steps=0",
        "train.steps=many",
        "optim.lr=-1",
        "train.global_batch=15 ",
        "data.crop=left",
        "bogus",
        "--bogus",
        "model=3",
        "train.steps=[",
        "regulariser.name=bogus",
        "model.patch_size=7",
        "=3",
        "data.subset=",
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(scripts, tmp_path, word):
    words = [word.strip(), "regulariser.name=none"] if "regulariser" not in word else [word]
    if "global_batch" in word:
        words.append("train.accumulation=2")
    refused(scripts.run("train_ae", *words, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run" / "ae" / "checkpoints").exists()


@pytest.mark.parametrize("variables", [{"NPROC": "0"}, {"NPROC": "two"}, {"NPROC": "-1"}, {"NNODES": "1.5"}])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_processes_are_whole(scripts, tmp_path, name, variables):
    assert "NPROC" in refused(scripts.run(name, run_dir=tmp_path / "run", **variables))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_not_there_is_named(scripts, tmp_path, name, pipeline):
    missing = str(tmp_path / "missing")
    autoencoder = (
        [f"autoencoder={pipeline.run_dir / 'ae' / 'autoencoder'}"] if name in ("train_mar", "train_sit") else []
    )
    words = ["regulariser.name=none"] if name == "train_ae" else autoencoder
    assert missing in refused(scripts.run(name, *words, run_dir=tmp_path / "run", DATA=missing))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tmp_path) -> Path:
    for i in range(6):
        file = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return tmp_path / "pictures"


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_unreadable_image_is_named_and_once_it_is_mended_the_same_command_goes_on(
    scripts, tmp_path, pictures, loaders
):
    bad = pictures / "class1" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-40])
    words = [
        "regulariser.name=none",
        "train.global_batch=6",
        "train.steps=2",
        "evaluate.extractor=",
        f"train.loader_workers={loaders}",
    ]
    assert str(bad) in refused(scripts.run("train_ae", *words, run_dir=tmp_path / "run", DATA=str(pictures)))
    bad.write_bytes(whole)
    mended = scripts.run("train_ae", *words, run_dir=tmp_path / "run", DATA=str(pictures))
    assert mended.returncode == 0, mended.stderr


def test_an_unreadable_image_stops_the_latent_cache(scripts, tmp_path, pictures, pipeline):
    bad = pictures / "class0" / "2.png"
    bad.write_bytes(b"no image")
    words = [f"autoencoder={pipeline.run_dir / 'ae' / 'autoencoder'}"]
    assert str(bad) in refused(scripts.run("train_mar", *words, run_dir=tmp_path / "run", DATA=str(pictures)))
    assert not (tmp_path / "run" / "latents" / "manifest.json").exists()


def test_features_of_ones_own_are_read_and_damaged_ones_named(scripts, tmp_path):
    file = tmp_path / "features.npy"
    np.save(file, np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32))
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    assert str(file) in refused(scripts.run("train_flowhead", run_dir=tmp_path / "run", DATA=str(file)))
    file.write_bytes(whole)
    mended = scripts.run("train_flowhead", run_dir=tmp_path / "run", DATA=str(file))
    assert mended.returncode == 0, mended.stderr


def test_a_prior_over_other_channels_is_refused_with_what_to_write(scripts, tmp_path, pipeline):
    line = refused(
        scripts.run(
            "train_ae", f"prior={pipeline.run_dir / 'flowhead' / 'prior'}", "model.channels=7", run_dir=tmp_path / "run"
        )
    )
    assert "channels=7" in line and not (tmp_path / "run").exists()


def test_missing_perceptual_weights_can_be_done_without_in_the_same_folder(scripts, tmp_path):
    words = ["regulariser.name=none", "train.steps=1", "evaluate.extractor="]
    offline = {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    answer = scripts.run("train_ae", *words, "loss.perceptual_weight=1", run_dir=tmp_path / "run", **offline)
    assert answer.returncode == 2 and "vgg16" in answer.stderr.splitlines()[-1] and "Traceback" not in answer.stderr
    assert scripts.run("train_ae", *words, "loss.perceptual_weight=0", run_dir=tmp_path / "run").returncode == 0


@pytest.mark.parametrize(
    "config, option",
    [(FlowPriorConfig, name) for name in ("channels", "width", "depth", "pairs", "group_size")]
    + [
        (AEConfig, f"model.{name}")
        for name in ("patch_size", "tokens", "channels", "encoder.width", "encoder.depth", "decoder.heads")
    ]
    + [(AEConfig, f"regulariser.flow.{name}") for name in ("pairs", "group_size")]
    + [(MARStageConfig, "model.mar.pairs"), (SiTStageConfig, "model.sit.pairs")],
)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused_by_their_config(config, option, value):
    with pytest.raises(UserError, match="at least 1"):
        build_config(config, apply_overrides({}, [f"{option}={value}"]))


@pytest.mark.parametrize("name", ["width", "heads", "encoder_depth", "buffer_tokens", "head_depth"])
def test_sizes_of_mar_below_zero_are_refused_and_zero_is_mar_bs(name):
    with pytest.raises(UserError, match="at least 1"):
        build_config(MARStageConfig, {"model": {"mar": {name: -1}}})
    assert build_config(MARStageConfig, {"model": {"mar": {name: 0}}}) == MARStageConfig()


@pytest.mark.parametrize(
    "words, message",
    [([], "name a run"), (["nowhere"], "there is no run at nowhere"), (["x", "--port", "0"], "--port")],
)
def test_the_page_says_in_one_line_what_it_lacks(scripts, words, message):
    assert message in refused(scripts.run("demo", *words, tiny=False))
