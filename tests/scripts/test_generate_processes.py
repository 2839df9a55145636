"""Sampling and measuring by two real processes under torchrun against one."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import timm
import torch


@pytest.fixture
def run_module(scripts):
    """Run a module with words in some processes."""

    def run(module: str, processes: int, *words: str) -> None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        subprocess.run(
            [scripts.python, "-m", *(launcher if processes > 1 else []), module, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python},
            check=True,
            capture_output=True,
            timeout=240,
        )

    return run


@pytest.fixture
def images(pipeline, run_module, tmp_path):
    """Sample 40 images of the pipeline's generator with some words in some processes."""

    def sample(name: str, processes: int, *words: str) -> np.ndarray:
        for needed in ("ae", "mar/generator"):
            shutil.copytree(pipeline.run_dir / needed, tmp_path / name / needed)
        sampler = "model.mar.sampler={ar_steps: 2, head_steps: 3}"
        run_module(
            "mar.generate",
            processes,
            f"run_dir={tmp_path / name}",
            sampler,
            "sample.count=40",
            "sample.cfg=[2]",
            *words,
        )
        samples = tmp_path / name / "mar" / "samples"
        assert {f.name for f in samples.iterdir()} == {"cfg_2.npz", "cfg_2.json", "cfg_2.png"}
        return np.load(samples / "cfg_2.npz")["arr_0"]

    return sample


def test_two_processes_draw_the_very_images_that_one_draws(images):
    exact = "sample.exact=true"
    one = images("one", 1, exact, "sample.batch=64")
    assert np.array_equal(images("two", 2, exact, "sample.batch=7"), one)
    plain = images("plain", 1, "sample.batch=8")
    assert np.array_equal(images("plain_two", 2, "sample.batch=8"), plain)
    assert np.abs(plain.astype(int) - one).max() <= 1


def small_timm_extractor(folder) -> str:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "resnet.pth")
    return f"timm:test_resnet@32={folder / 'resnet.pth'}"


def test_two_processes_measure_what_one_measures(pipeline, run_module, tmp_path):
    metrics, baseline = [], tmp_path / "baseline.npz"
    np.savez(baseline, arr_0=np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8))
    fdr = [f"evaluate.fdr.baseline={baseline}", "evaluate.fdr.precision_recall=true"]
    fdr += [f"evaluate.fdr.extractors=[digits,{small_timm_extractor(tmp_path)}]"]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        shutil.copytree(pipeline.run_dir / "mar" / "samples", folder / "mar" / "samples")
        words = ["sample.count=40", "sample.cfg=[1,2]", "evaluate.half_half_splits=1", *fdr]
        run_module("mar.evaluate", processes, f"run_dir={folder}", *words)
        metrics.append(json.loads((folder / "mar" / "evaluation.json").read_text()))
    assert metrics[0]["protocol"] == metrics[1]["protocol"]
    for cfg in ("1", "2"):
        assert metrics[1]["metrics"][cfg] == pytest.approx(metrics[0]["metrics"][cfg], rel=1e-6)
        assert metrics[1]["metrics"][cfg]["fdr2"] > 0 and "precision timm:test_resnet@32" in metrics[1]["metrics"][cfg]
    assert metrics[1]["half_half_fid"]["mean"] == pytest.approx(metrics[0]["half_half_fid"]["mean"], rel=1e-6)


def test_two_processes_measure_a_few_images_in_the_course_of_training(pipeline, scripts, tmp_path):
    for needed in ("ae", "latents"):
        shutil.copytree(pipeline.run_dir / needed, tmp_path / needed)
    words = ["evaluate.online_count=200", "evaluate.online_epochs=0.05", "sample.cfg=[1]"]  # 6 of 112 steps
    assert scripts.run("train_mar", *words, run_dir=tmp_path, NPROC="2").returncode == 0
    rows = map(json.loads, (tmp_path / "mar" / "log.jsonl").read_text().splitlines())
    metrics = {row["step"]: row["fid_of_200"] for row in rows if "fid_of_200" in row}
    assert list(metrics) == [6, 12] and all(value > 0 for value in metrics.values())
    made_from = json.loads((tmp_path / "mar" / "reference.json").read_text())  # a resumed run reads the moments
    assert made_from["count"] == 1797 and (tmp_path / "mar" / "reference.npz").is_file()


def test_a_run_does_not_go_on_with_another_scale(pipeline, scripts, tmp_path):
    for needed in ("ae", "latents", "mar"):
        shutil.copytree(pipeline.run_dir / needed, tmp_path / needed)
    file = tmp_path / "latents" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["statistics"]["scale"] *= 2
    file.write_text(json.dumps(manifest))
    refused = scripts.run("train_mar", run_dir=tmp_path)
    assert refused.returncode == 2 and "another scale of the latents" in refused.stderr
