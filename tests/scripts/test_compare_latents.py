"""The comparison of autoencoders' latents, on small ones that are not trained."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from flowprior.data.embedded import digit_images, split_indices
from flowprior.metrics import judge_confidence
from flowprior.run.config import to_dict
from scripts import compare_latents
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig
from tokenizer.config import AEConfig


@pytest.fixture
def compare(monkeypatch, capfd, tmp_path):
    """A function from the script's words to its exit code and what it printed; results lie in ``latents.json``."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(
            sys, "argv", ["compare_latents.py", *map(str, words), "--json", str(tmp_path / "latents.json")]
        )
        try:
            compare_latents.main()
        except SystemExit as stop:
            return int(stop.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return run


def write_run(folder: Path, seed: int) -> Path:
    vit = ViTConfig(width=12, depth=1, heads=3)
    torch.manual_seed(seed)
    model = AutoencoderConfig(32, 16, 4, 3, encoder=vit, decoder=vit, token_std=0.5)
    Autoencoder(model).save(folder / "ae" / "autoencoder")
    config = AEConfig(model=model)
    config.data.source, config.data.size, config.data.subset = "digits", 32, "train"
    config.evaluate.extractor = "digits"
    (folder / "ae" / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return folder


def test_a_row_for_every_figure_a_column_for_runs_that_differ_by_seed_and_a_picture(compare, tmp_path):
    runs = [write_run(tmp_path / name, seed) for seed, name in enumerate(("a_seed0", "a_seed1", "b"))]
    picture = tmp_path / "pictures" / "latents.png"
    code, said = compare(*runs[:2], "--noise", "0.5")
    assert code == 0, said
    kept = json.loads((tmp_path / "latents.json").read_text())
    kept["a_seed0"]["psnr"] = 99.0  # what is there stays
    (tmp_path / "latents.json").write_text(json.dumps(kept))
    code, said = compare(*runs, "--noise", "0.5", "--draw", picture)
    assert code == 0, said
    results = json.loads((tmp_path / "latents.json").read_text())
    assert list(results) == ["a_seed0", "a_seed1", "b"] and results["a_seed0"] == kept["a_seed0"]
    one = results["b"]
    assert one["held_out"] and one["images"] == len(split_indices(1797, "val"))
    assert one["rfid"] > 0 and one["rfid_noise_0.5"] > 0 and 0 < abs(one["psnr_noise_0.5"] - one["psnr"]) < 5
    assert len(one["autocorrelation"]) == 4 and one["autocorrelation"][1] == one["autocorrelation_1"]
    images = digit_images(32)[0][split_indices(1797, "val")]
    assert one["sure_images"] == pytest.approx((judge_confidence("digits", images) >= 0.9).double().mean().item())
    assert one["sure_images"] > 0.9 > 0.2 > one["sure_reconstructions"]  # the autoencoder has learned nothing
    assert 0.2 < one["sure_pixel_midpoints"] < 0.9
    header, *rows = [line for line in said.splitlines() if line.startswith("|")]
    assert header == "| | a (2) | b (1) |"
    [psnr] = [row for row in rows if row.startswith("| PSNR |")]
    mean = (99 + results["a_seed1"]["psnr"]) / 2
    assert f"| {mean:.2f} ± " in psnr and psnr.endswith(f"| {one['psnr']:.3f} |")
    assert picture.stat().st_size > 10_000


def test_another_noise_and_other_weights_are_measured_anew_and_one_name_for_two_runs_is_refused(compare, tmp_path):
    run, file = write_run(tmp_path / "a" / "run", 0), tmp_path / "latents.json"
    compare(run, "--noise", "0.5")
    first = json.loads(file.read_text())["run"]
    of_before = {name: first["made_from"][name] for name in first["made_from"] if name != "formulas"}
    file.write_text(json.dumps({"run": first | {"psnr": 99.0, "made_from": of_before}}))
    compare(run, "--noise", "0.5")
    assert json.loads(file.read_text())["run"] == first
    compare(run, "--noise", "0.2")
    second = json.loads(file.read_text())["run"]
    assert "rfid_noise_0.2" in second and "rfid_noise_0.5" not in second and second["psnr"] == first["psnr"]
    write_run(run, 1)
    compare(run, "--noise", "0.2")
    assert json.loads(file.read_text())["run"]["psnr"] != first["psnr"]
    code, said = compare(run, write_run(tmp_path / "b" / "run", 2))
    assert code == 2 and "two runs are called 'run'" in said


def test_a_folder_without_an_autoencoder_and_nothing_to_show_are_one_line_each(compare, tmp_path):
    code, said = compare(tmp_path / "nothing")
    assert code == 2 and said.count("error:") == 1 and "there is no trained autoencoder" in said
    code, said = compare()
    assert code == 2 and "there is nothing to show" in said
