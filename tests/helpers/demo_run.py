"""A run's folder as the stages leave it, with networks of random weights: autoencoder, MAR and flow prior of the embedded digits."""

from pathlib import Path

import torch
import yaml

from flowprior import FlowPrior
from flowprior.run.config import build_config, to_dict
from flowprior.run.files import write_tensors
from saved_generators import SHAPE, autoencoder, save, stage
from tokenizer.config import AEConfig

SIDE = 16


def write_run(folder: Path) -> Path:
    """The folder ``folder``, which is made."""
    tokenizer = autoencoder(0)
    tokenizer.save(folder / "ae" / "autoencoder")
    model = to_dict(tokenizer.config)
    ae = build_config(AEConfig, {"run_dir": str(folder), "data": {"size": SIDE, "subset": "train"}, "model": model})
    (folder / "ae" / "config.yaml").write_text(yaml.safe_dump(to_dict(ae)))
    save(folder)
    mar = to_dict(stage(folder)) | {"run_dir": "elsewhere", "data": {"size": SIDE}}  # it has been moved since
    (folder / "mar" / "config.yaml").write_text(yaml.safe_dump(mar))
    features = torch.randn(200, SHAPE["channels"], generator=torch.Generator().manual_seed(0))
    prior = FlowPrior.fit(features, channels=SHAPE["channels"], width=8, depth=1, steps=2)
    prior.save(folder / "flowhead" / "prior")
    write_tensors(folder / "flowhead" / "target_samples.safetensors", {"samples": prior.project(features)})
    return folder
