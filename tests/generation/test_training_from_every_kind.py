"""A training run, its latents and its figures are the same bits wherever the same images lie in the same order."""

import json
import sys
import zipfile

import numpy as np
import pytest
from safetensors.torch import load_file

from flowprior.run.files import tensors_fingerprint
from image_sets import pictures, write_folder, write_parquet, write_saved, write_shards, write_zip
from mar import cache_latents
from tokenizer import evaluate, train_ae
from tokenizer.prior import train_flowhead

SOME = pictures(22, ("ant", "bee"), size=(30, 34))
TRAIN = "train={steps: 7, global_batch: 4, eval_steps: 0, checkpoint_steps: 0, tensorboard: false}"
AE = [
    "regulariser.name=none", "data={size: 16, crop: random_resized, flip: true, shuffle_block: 0}", "evaluate.metrics=[fidelity]",
    "model={image_size: 16, patch_size: 8, tokens: 2, channels: 4}", "evaluate.extractor=", "monitor={images: 8, picture_images: 4}",
    "model.encoder={width: 12, depth: 1, heads: 3}", "model.decoder={width: 12, depth: 1, heads: 3}", TRAIN,
]  # fmt: skip


def write_list(folder):
    write_folder(folder, SOME)
    (folder / "list.jsonl").write_text("".join(json.dumps({"path": i.file, "label": i.label}) + "\n" for i in SOME))
    return folder / "list.jsonl"


PLACES = {
    "folder": lambda root: write_folder(root / "images", SOME),
    "tar": lambda root: write_shards(root / "images", SOME, per_shard=5, label="txt"),
    "zip": lambda root: write_zip(root / "images.zip", SOME, zipfile.ZIP_DEFLATED),
    "list": lambda root: write_list(root / "images"),
    "parquet": lambda root: write_parquet(root / "images", SOME),
    "arrow": lambda root: write_saved(root / "images", SOME),
}


def everything_made_of(kind: str, root, monkeypatch) -> dict[str, object]:
    """Hashes of the autoencoder, of its latents and of a flow prior of them, and the figures of the reconstructions; any image may follow
    any in training, which is not Parquet's usual order."""
    if kind in ("parquet", "arrow"):
        pytest.importorskip("datasets")
    place = PLACES[kind](root)

    def run(module, *words: str) -> None:
        own = ["data.source=files", f"data.path={place}", f"run_dir={root / 'run'}"]
        monkeypatch.setattr(sys, "argv", ["command", *words, *own])
        module.main()

    run(train_ae, *AE)
    run(evaluate, *AE, f"held_out={place}")
    run(cache_latents, "data.size=16", "cache={shard_images: 8, batch: 4}")
    target = [
        "target.source=autoencoder",
        f"target.autoencoder.path={root / 'run' / 'ae' / 'autoencoder'}",
        "channels=4",
        "width=16",
        "depth=1",
        "group_size=2",
    ]
    run(train_flowhead, *target, "data.size=16", TRAIN)
    manifest = json.loads((root / "run" / "latents" / "manifest.json").read_text())
    assert (
        manifest["kind"] == kind
        and manifest["class_names"] == ["ant", "bee"]
        and len(manifest["origin"]["images"]) == 16
    )
    evaluation = json.loads((root / "run" / "ae" / "evaluation.json").read_text())
    return {
        "autoencoder": tensors_fingerprint(load_file(root / "run" / "ae" / "autoencoder" / "model.safetensors")),
        "latents": [
            tensors_fingerprint(load_file(root / "run" / "latents" / shard["file"])) for shard in manifest["shards"]
        ],
        "prior": tensors_fingerprint(load_file(root / "run" / "flowhead" / "prior" / "model.safetensors")),
        "figures": {name: value for name, value in evaluation["metrics"].items() if np.isfinite(value)},
    }


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return everything_made_of("folder", tmp_path_factory.mktemp("folder"), patch)


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind != "folder"])
def test_what_every_stage_makes_does_not_depend_on_where_the_images_lie(kind, of_a_folder, tmp_path, monkeypatch):
    made = everything_made_of(kind, tmp_path, monkeypatch)
    assert made == of_a_folder and len(made["latents"]) == 3 and made["figures"]["psnr"] > 0
