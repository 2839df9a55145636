"""Sampling by two real processes under torchrun against one."""

import os
import shutil
import subprocess

import numpy as np
import pytest


@pytest.fixture
def images(pipeline, scripts, tmp_path):
    """Sample 40 images of the pipeline's generator with some words in some processes."""

    def sample(name: str, processes: int, *words: str) -> np.ndarray:
        for needed in ("ae", "mar/generator"):
            shutil.copytree(pipeline.run_dir / needed, tmp_path / name / needed)
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        words = ["model.mar.sampler={ar_steps: 2, head_steps: 3}", "sample.count=40", "sample.cfg=[2]", *words]
        subprocess.run(
            [scripts.python, "-m", *(launcher if processes > 1 else []), "mar.generate", f"run_dir={tmp_path / name}", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python},
            check=True,
            capture_output=True,
            timeout=240,
        )  # fmt: skip
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
