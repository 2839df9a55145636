import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flowprior.data.latent_writer import CacheConfig
from flowprior.errors import UserError
from flowprior.run.config import apply_overrides, build_config, changed_options, option, to_dict
from flowprior.run.presets import config_from_command_line, read_preset
from flowprior.training.config import TrainConfig
from tokenizer import train_ae
from tokenizer.prior import train_flowhead


@pytest.mark.parametrize("words", [["workers=3"], ["workers="], ["workers={a: 1}"]])
def test_an_option_typed_by_its_former_name_is_refused_with_its_present_one(words):
    with pytest.raises(UserError, match="^option 'workers' is called 'loader_workers': write loader_workers=$"):
        build_config(TrainConfig, apply_overrides({}, words))


def test_the_present_name_stands_in_its_section(tmp_path: Path):
    preset = tmp_path / "own.yaml"
    preset.write_text("workers: 3\n")
    with pytest.raises(
        UserError, match="'train.workers' is called 'train.loader_workers': write train.loader_workers=$"
    ):
        build_config(TrainConfig, read_preset(preset, tmp_path), "train")


@pytest.mark.parametrize("cls", [TrainConfig, CacheConfig])
def test_a_kept_config_with_the_former_name_is_read_and_goes_on(cls):
    kept = yaml.safe_load(yaml.safe_dump(to_dict(cls(loader_workers=3))))
    kept["workers"] = kept.pop("loader_workers")
    assert build_config(cls, kept) == cls(loader_workers=3)
    assert changed_options(cls, kept, to_dict(cls())) == []


@dataclass
class Stage:
    run_dir: str = option("", "folder of the run")


def test_a_signal_within_argparse_ends_the_command_as_anywhere_else(monkeypatch, tmp_path):
    def interrupted(self):
        raise SystemExit(143)

    # In some versions of Python it comes before argparse has noted down what its cleaning up puts back.
    monkeypatch.setattr(argparse.ArgumentParser, "format_usage", interrupted)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", lambda *arguments: interrupted(None))
    with pytest.raises(SystemExit) as stop:
        config_from_command_line(Stage, tmp_path, "", [])
    assert stop.value.code == 143


@pytest.mark.parametrize("stage", [train_flowhead, train_ae])
def test_help_names_the_folder_of_presets_from_the_repositorys_root(stage, monkeypatch, capsys, repository):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        stage.main()
    [folder] = re.findall(r"a name in (\S+), or a", " ".join(capsys.readouterr().out.split()))
    assert (repository / folder / "digits.yaml").is_file()
