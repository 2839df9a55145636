"""The eps of MAR's norms: stated by what is saved, and kept by runs and generators of before it was stated."""

import json

import pytest
import yaml

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.norms import norm_eps
from flowprior.run.run_folder import RunFolder
from saved_generators import load, rewrite, save, stage


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved generator."""
    save(tmp_path)
    return tmp_path / "mar" / "generator"


def test_a_generator_states_the_eps_of_its_norms_and_has_them_again(tmp_path, saved):
    written = json.loads((saved / "config.json").read_text())["generator"]["mar"]
    assert (written["norm_eps"], written["qk_norm_eps"]) == (1e-6, 1e-5)
    rewrite(saved, lambda c: c["generator"]["mar"].update(norm_eps=1e-3, qk_norm_eps=1e-2))
    found = norm_eps(load(tmp_path)[0].model)
    assert {eps for name, eps in found.items() if "q_norm" in name or "k_norm" in name} == {1e-2}
    assert {eps for name, eps in found.items() if name.startswith(("encoder.", "decoder.")) and ".norm" in name} == {
        1e-3
    }


def test_a_generator_of_before_has_timms_one_eps_for_all_norms_and_that_is_said(tmp_path, saved, capsys):
    def forget(config):
        for name in ("norm_eps", "qk_norm_eps"):
            del config["generator"]["mar"][name]

    rewrite(saved, forget)
    model = load(tmp_path)[0].model
    said = capsys.readouterr().err
    assert "states no eps of its norms: 1e-06 is taken" in said and said.count("\n") == 1
    assert set(norm_eps(model).values()) == {1e-6}


def test_a_run_that_began_before_goes_on_with_the_eps_that_it_has(tmp_path, capsys):
    config, folder = stage(tmp_path), RunFolder(tmp_path, "mar")
    folder.open(config, World())
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    written = yaml.safe_load(folder.config_file.read_text())
    for name in ("norm_eps", "qk_norm_eps"):
        del written["model"]["mar"][name]
    folder.config_file.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match="qk_norm_eps: 1e-06 -> 1e-05"):
        folder.check(stage(tmp_path), {})
    config.keep_what_began(folder)
    assert config.model.mar.qk_norm_eps == 1e-6 and "states no eps of its norms" in capsys.readouterr().err
    assert folder.check(config, {}) == []
    begun_now = stage(tmp_path / "now")
    begun_now.keep_what_began(RunFolder(tmp_path / "now", "mar"))
    assert begun_now.model.mar.qk_norm_eps == 1e-5
