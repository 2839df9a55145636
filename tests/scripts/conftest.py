"""The scripts as a person runs them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    "train.global_batch=16",
    "train.checkpoint_steps=5",
    "train.eval_steps=5",
    "train.log_steps=5",
    "optim.warmup_steps=2",
]
VIT = "{width: 24, depth: 1, heads: 3}"
TINY = {
    "train_flowhead": [
        "target.digits_semantic.steps=5",
        "target.digits_semantic.width=16",
        "channels=4",
        "width=16",
        "group_size=4",
        "depth=1",
        "train.steps=12",
    ],
    "train_ae": [
        "model.tokens=4",
        "model.channels=4",
        f"model.encoder={VIT}",
        f"model.decoder={VIT}",
        "monitor.images=32",
        "train.steps=12",
    ],
    "train_mar": [
        "model.mar.width=32",
        "model.mar.encoder_depth=1",
        "model.mar.decoder_depth=1",
        "model.mar.head_width=16",
        "model.mar.head_depth=1",
        "model.mar.sampler={ar_steps: 2, head_steps: 3}",
        "cache.shard_images=700",
        "cache.scale_per=all",
        "train.steps=12",
        "sample.count=40",
        "sample.cfg=[1, 2]",
        "sample.preview_images=10",
    ],
    "train_sit": [
        "model.sit={size: '', width: 32, depth: 1, heads: 2}",
        "model.sit.sampler.steps=3",
        "cache.shard_images=700",
        "cache.scale_per=all",
        "train.steps=12",
        "sample.count=40",
        "sample.cfg=[1, 2]",
        "sample.preview_images=10",
    ],
}


class Scripts:
    """Runs ``bash scripts/<name>.sh`` with tiny options."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.tiny_options = {name: TRAIN + words for name, words in TINY.items()}

    def command(self, name: str, *words: str, run_dir: Path | None = None, tiny: bool = True, **variables: str) -> dict:
        """What ``subprocess`` wants to know; ``variables`` go to the script's environment."""
        options = [*(self.tiny_options[name] if tiny else []), *([f"run_dir={run_dir}"] if run_dir else []), *words]
        environment = {k: v for k, v in os.environ.items() if k not in ("PRESET", "DATA", "NPROC", "NNODES")}
        environment |= {"PYTHON": self.python, "PYTHON_EXEC": self.python, "OMP_NUM_THREADS": "1", **variables}
        return {"args": ["bash", str(ROOT / "scripts" / f"{name}.sh"), *options], "env": environment, "text": True}

    def run(self, name: str, *words: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(**self.command(name, *words, **options), capture_output=True, timeout=240)


@pytest.fixture(scope="session")
def scripts(warm_python) -> Scripts:
    return Scripts(warm_python)


class Pipeline:
    """One run of the scripts, one after the other."""

    def __init__(self, scripts: Scripts, run_dir: Path) -> None:
        self.run_dir, self.outputs = run_dir, {}
        for name in TINY:
            result = scripts.run(name, run_dir=run_dir)
            assert result.returncode == 0, f"{name}: {result.stderr}"
            self.outputs[name] = result

    def result(self, stage: str) -> dict:
        return json.loads((self.run_dir / stage / "result.json").read_text())


@pytest.fixture(scope="session")
def pipeline(scripts, tmp_path_factory) -> Pipeline:
    return Pipeline(scripts, tmp_path_factory.mktemp("pipeline") / "run")


@pytest.fixture
def snapshot():
    """A function from a folder to what lies in it: names, contents, and times of the last change."""
    return lambda folder: {
        str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }
