"""The autoencoder with a discriminator and two regularisers, as a person runs it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from compiler import needs_compiler
from flowprior.run.reporting import read_log
from tokenizer.autoencoder import Autoencoder

WORDS = [
    "data.subset=train",
    "regulariser.name=softvq+vavae",
    "regulariser.softvq={codebooks: 2, size: 7, alignment_weight: 0.1, hidden: 8}",
    "regulariser.vavae.adaptive=true",
    "features={source: digits, digits: {steps: 3, width: 8}}",
    "loss.adversarial={weight: 0.1, start_step: 3, adaptive: true, lecam_weight: 0.01, consistency_weight: 1}",
    "loss.adversarial.discriminator={name: patchgan, patchgan: {width: 4, layers: 1}}",
    "loss.latent_noise_std=0.1",
    "loss.adversarial.optim.lr=1e-3",
    "train.steps=8",
    "train.log_steps=1",
    "evaluate.metrics=[fidelity]",
]


@pytest.fixture(scope="module")
def trained(scripts, tmp_path_factory):
    run = tmp_path_factory.mktemp("full")
    result = scripts.run("train_ae", *WORDS, run_dir=run)
    assert result.returncode == 0, result.stderr
    return run


def steps(run) -> list[dict]:
    return [row for row in read_log(run / "ae" / "log.jsonl") if "loss" in row]


def test_two_processes_train_both_networks_as_one_does(trained, scripts, tmp_path):
    result = scripts.run("train_ae", *WORDS, run_dir=tmp_path, NPROC="2")
    assert result.returncode == 0, result.stderr
    names = [
        "loss",
        "l2",
        "softvq",
        "vavae",
        "adversarial",
        "latent_gradient/l2",
        "latent_gradient/vavae",
        "weighted/vavae",
    ]
    names += [f"discriminator/{name}" for name in ("game", "lecam", "consistency", "logits_real")]
    one, two = steps(trained), steps(tmp_path)
    for row, other in zip(one, two, strict=True):
        for name in names:
            if name in row:
                assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-7), (name, row["step"])
    assert sum("adversarial" in row for row in one) == 5
    heads = [
        torch.load(next(run.glob("ae/checkpoints/step_00000008/discriminator.pt")), weights_only=True)["module"]
        for run in (trained, tmp_path)
    ]
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_is_one_folder_with_its_recipe_and_its_codebooks(trained):
    folder = trained / "ae" / "autoencoder"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "latent_maps.0.codewords" in load_file(folder / "model.safetensors")
    about = Autoencoder.load(folder).about
    assert [r["name"] for r in about["regularisers"]] == ["softvq", "vavae"] and about["data"]["crop"] == "centre"
    assert about["latents"].keys() >= {"latent_mean", "latent_std", "latent_norm", "latent_effective_rank"}


def test_it_is_measured_on_the_part_of_the_digits_that_it_was_not_trained_on(trained):
    protocol = json.loads((trained / "ae" / "evaluation.json").read_text())["protocol"]
    assert protocol["held_out"] is True and protocol["count"] == 359


def test_a_dry_run_says_what_a_step_costs_and_writes_nothing(scripts, tmp_path):
    result = scripts.run("train_ae", "--dry-run", *WORDS, run_dir=tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert re.search(r"discriminator +[\d,]+ trained", result.stdout) and "FLOP" in result.stdout
    assert "--dry-run" not in result.stderr and not (tmp_path / "run").exists()


MISTAKES = {
    "a reference of another count": (["evaluate.metrics=[rfid]", "evaluate.reference={npz}"], "number of images"),
    "another crop": (["data.crop=random_resized"], "data.crop=centre"),
    "an unknown metric": (["evaluate.metrics=[bogus]"], "fidelity, lpips, rfid"),
    "no noise": (["evaluate.latent_noise_shares=[0.1, 0]"], "numbers above 0"),
    "no VGG weights": (["evaluate.metrics=[lpips]", "loss.perceptual_weights=nowhere.pth"], "nowhere.pth"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_evaluation_that_would_not_compare_is_refused_in_one_line(trained, tmp_path, mistake, repository, capsys):
    from tokenizer import evaluate

    words, said = MISTAKES[mistake]
    shutil.copytree(trained / "ae" / "autoencoder", tmp_path / "ae" / "autoencoder")
    words = [word.format(npz=repository / "fid_stats" / "digits.npz") for word in words]
    arguments = [f"run_dir={tmp_path}", "data.subset=train", "regulariser.name=none", *words]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["evaluate", *arguments])
        evaluate.main()
    assert stopped.value.code == 2 and not (tmp_path / "ae" / "evaluation.json").exists()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line


def test_noise_on_the_latents_is_measured_beside_them(trained, tmp_path, capsys):
    from tokenizer import evaluate

    shutil.copytree(trained / "ae" / "autoencoder", tmp_path / "ae" / "autoencoder")
    arguments = [f"run_dir={tmp_path}", "data.subset=train", "evaluate.metrics=[fidelity]"]

    def run(*words: str) -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["evaluate", *arguments, *words])
            evaluate.main()
        return json.loads((tmp_path / "ae" / "evaluation.json").read_text())["metrics"]

    plain = run()
    noisy = run("evaluate.latent_noise_shares=[0.01, 50]")
    assert {name: noisy[name] for name in plain} == plain
    assert set(noisy) - set(plain) == {f"{name}_noise_{share}" for name in plain for share in ("0.01", "50")}
    assert noisy["psnr_noise_50"] < noisy["psnr_noise_0.01"] < plain["psnr"] + 0.01
    capsys.readouterr()
    assert run("evaluate.latent_noise_shares=[0.01, 50]") == noisy and "complete" in capsys.readouterr().out


def test_the_report_names_figures_with_noise_by_what_they_are_and_the_share():
    from scripts.report import metrics_text

    assert metrics_text({"psnr": 29.5, "psnr_noise_0.2": 24.25}) == "PSNR 29.50 dB  PSNR with noise 0.2 24.25 dB"


def test_the_report_says_whether_the_images_are_those_of_training(trained):
    from scripts.report import measured_images

    protocol = json.loads((trained / "ae" / "evaluation.json").read_text())["protocol"]
    assert measured_images(protocol) == "359 held-out images"
    assert measured_images(protocol | {"held_out": False}) == "359 training images"


@needs_compiler
def test_compiled_it_trains_alike(trained, scripts, tmp_path):
    """Gradients are asked for more than once in a step, for the adaptive weights, and of a compiled network too."""
    made = tmp_path / "made"
    result = scripts.run("train_ae", *WORDS, "train.compile=true", run_dir=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(made))
    assert result.returncode == 0, result.stderr
    assert list(made.rglob("*.so"))
    compared = set()
    for row, plain in zip(steps(tmp_path), steps(trained), strict=True):
        assert row.keys() == plain.keys()
        for name in {"loss", "l2", "weighted/vavae", "latent_gradient/l2", "discriminator/game"} & row.keys():
            assert row[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-6), (name, row["step"])
            compared.add(name)
    assert len(compared) == 5
