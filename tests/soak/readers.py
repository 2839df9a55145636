"""Every file format that the project reads: a small example, and what reads it."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from flowprior.data.features import read_features
from flowprior.data.image_archive import ImageArchive
from flowprior.data.images import ImageConfig, open_images
from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_scale import check_statistics
from flowprior.data.order import SampleKey
from flowprior.data.stores import index
from flowprior.data.stores.recognise import open_store
from flowprior.flow.prior import FlowPrior
from flowprior.metrics.statistics import Statistics
from flowprior.pretrained.weights import read_weights
from flowprior.run.config import build_config
from flowprior.run.files import file_sha256, read_json
from flowprior.run.lock import NAME as LOCK
from flowprior.run.lock import FolderLock
from flowprior.run.reporting import RunLog, read_log
from flowprior.run.run_folder import Stopwatch
from flowprior.run.written import read_yaml
from image_sets import pictures, write_folder, write_parquet, write_saved, write_shards, write_zip
from soak.saves import SmallRun
from soak.stages import Soak
from tokenizer.autoencoder import Autoencoder
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import FlowPriorConfig


@dataclass(frozen=True)
class Format:
    """A file that is read.

    Args:
        file: a whole one.
        read: reads it as the project does, and looks at what it read.
        sign: makes the checksums that vouch for it fit; None where there are none.
    """

    file: Path
    read: Callable[[], object]
    sign: Callable[[], None] | None = None


def formats(soak: Soak, folder: Path) -> dict[str, Format]:
    """Every format by name, its example somewhere in ``folder``."""
    base = soak.build()
    for name in ("ae/autoencoder", "flowhead/prior", "latents"):
        shutil.copytree(base / name, folder / name)
    found = _checkpoint(folder / "checkpoint") | _cache(folder / "latents") | _arrays(folder) | _images(folder)
    found |= _places(folder / "places")
    config = folder / "config.yaml"
    shutil.copy(base / "flowhead" / "config.yaml", config)
    log = folder / "log.jsonl"
    shutil.copy(base / "flowhead" / "log.jsonl", log)
    lock = folder / "lock" / LOCK
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 5, "since": "2026-01-01 00:00:00 +0000"}))
    seconds = folder / "seconds"
    seconds.write_text("12.345")
    prior, autoencoder = folder / "flowhead" / "prior", folder / "ae" / "autoencoder"
    return found | {
        "config.yaml": Format(config, lambda: build_config(FlowPriorConfig, read_yaml(config))),
        "preset.yaml": Format(_preset(folder), lambda: build_config(AEConfig, read_yaml(folder / "preset.yaml"))),
        "log.jsonl": Format(log, lambda: RunLog(_copy(log), 10, tensorboard=False)),
        "lock": Format(lock, lambda: _acquire(lock.parent)),
        "seconds": Format(seconds, lambda: Stopwatch(folder).seconds()),
        "prior config.json": Format(prior / "config.json", lambda: FlowPrior.load(prior)),
        "prior model.safetensors": Format(prior / "model.safetensors", lambda: FlowPrior.load(prior)),
        "autoencoder config.json": Format(autoencoder / "config.json", lambda: Autoencoder.load(autoencoder)),
        "autoencoder model.safetensors": Format(
            autoencoder / "model.safetensors", lambda: Autoencoder.load(autoencoder)
        ),
    }


def _copy(log: Path) -> Path:
    """RunLog rewrites what it reads."""
    folder = log.with_name("log_copy")
    folder.mkdir(exist_ok=True)
    shutil.copy(log, folder / "log.jsonl")
    return folder


def _acquire(folder: Path) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    lock.release()


def _preset(folder: Path) -> Path:
    file = folder / "preset.yaml"
    file.write_text(
        "# a preset\nmodel: &m {tokens: 4, channels: 8}\ntrain:\n  steps: 1e3\n  seed: 3\noptim: {lr: 2e-4, betas: [0.9, 0.95]}\n"
    )
    return file


def _checkpoint(folder: Path) -> dict[str, Format]:
    SmallRun(folder, 3, 2).checkpoints.save(3)
    whole = folder / "step_00000003"

    def sign() -> None:
        manifest = json.loads((whole / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            entry |= {"bytes": (whole / name).stat().st_size, "sha256": file_sha256(whole / name)}
        (whole / "manifest.json").write_text(json.dumps(manifest))

    def read() -> None:
        SmallRun(folder, 0, 2).checkpoints.load_latest()

    made = {f"checkpoint {name}": Format(whole / name, read, sign) for name in ("model.safetensors", "optimizer.pt")}
    return made | {"checkpoint manifest.json": Format(whole / "manifest.json", read)}


def _cache(folder: Path) -> dict[str, Format]:
    shard = folder / "latents-00000.safetensors"

    def read() -> None:
        cache = LatentCache(folder)
        cache.batch([SampleKey(index, 0) for index in (0, len(cache) - 1)])
        check_statistics(cache)

    def sign() -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][0]["sha256"] = file_sha256(shard)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return {"latent shard": Format(shard, read, sign), "latent manifest.json": Format(folder / "manifest.json", read)}


def _arrays(folder: Path) -> dict[str, Format]:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((20, 6)).astype(np.float32)
    np.save(folder / "features.npy", table)
    np.savez_compressed(folder / "features.npz", features=table)
    torch.save({"features": torch.from_numpy(table)}, folder / "features.pt")
    save_file({"features": torch.from_numpy(table)}, folder / "features.safetensors")
    torch.save({"weight": torch.ones(3, 3)}, folder / "weights.pth", _use_new_zipfile_serialization=False)
    Statistics(np.zeros(5), np.eye(5), 10, "digits").save(folder / "statistics.npz")
    images = draw.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=images, labels=np.arange(6))
    np.savez_compressed(folder / "compressed.npz", arr_0=images, arr_1=np.arange(6))
    made = {
        f"features{suffix}": Format(
            folder / f"features{suffix}", lambda suffix=suffix: read_features(folder / f"features{suffix}").sum()
        )
        for suffix in (".npy", ".npz", ".pt", ".safetensors")
    }
    for name in ("images", "compressed"):
        made[f"{name}.npz"] = Format(
            folder / f"{name}.npz", lambda name=name: [b.sum() for b in ImageArchive(folder / f"{name}.npz").batches(4)]
        )
    return made | {
        "statistics.npz": Format(folder / "statistics.npz", lambda: Statistics.load(folder / "statistics.npz")),
        "weights.pth": Format(folder / "weights.pth", lambda: read_weights(folder / "weights.pth")),
    }


def _images(folder: Path) -> dict[str, Format]:
    draw, made = np.random.default_rng(1), {}
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        file = folder / suffix / f"image.{suffix}"
        file.parent.mkdir()
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
        config = ImageConfig(source="folder", path=str(file.parent), size=8, crop="random_resized")
        made[f"image.{suffix}"] = Format(file, lambda config=config: open_images(config).batch([SampleKey(0, 1)]))
    return made


def _places(folder: Path) -> dict[str, Format]:
    """Shards, the index of shards, tables, and lists; the files of each in a folder of their own."""
    images, made = pictures(6, size=(8, 9)), {}

    def add(name: str, file: Path, place: Path | None = None, sign: Callable[[], None] | None = None) -> None:
        config = ImageConfig("files", str(place or file), 8)
        made[name] = Format(file, lambda: _every_image(config), sign)

    (folder / "zip").mkdir(parents=True)
    (folder / "deflated").mkdir()
    add("shard.tar", write_shards(folder / "tar", images, label="json") / "set-000000.tar", folder / "tar")
    add("images.zip", write_zip(folder / "zip" / "images.zip", images))
    add("deflated.zip", write_zip(folder / "deflated" / "images.zip", images, zipfile.ZIP_DEFLATED))
    add("images.parquet", write_parquet(folder / "parquet", images) / "part-00000.parquet")
    saved = write_saved(folder / "saved", images, shards=1)
    for file in ("data-00000-of-00001.arrow", "state.json"):
        add(f"saved {file}", saved / file, saved)
    for name, place in (("tar", write_shards(folder / "indexed", images)), ("zip", folder / "zip" / "images.zip")):
        kept = open_store(str(place)).index_files[0]  # type: ignore[attr-defined]
        copied = folder / f"index of {name}"
        shutil.copytree(kept.parent, copied)
        for file in copied.iterdir():
            os.utime(file, ns=(0, (kept.parent / file.name).stat().st_mtime_ns))
        add(
            f"index of {name}",
            copied / kept.name,
            copied / place.name if place.is_file() else copied,
            partial(_sign_index, copied / kept.name),
        )
    for suffix, line in (
        (".csv", "{i.file},{i.label}\n"),
        (".jsonl", '{{"path": "{i.file}", "label": "{i.label}"}}\n'),
    ):
        listed = write_folder(folder / suffix[1:], images) / f"list{suffix}"
        listed.write_text("".join(line.format(i=image) for image in images))
        add(f"list{suffix}", listed)
    return made


def _every_image(config: ImageConfig) -> None:
    images = open_images(config)
    images.batch([SampleKey(index, -1) for index in range(len(images))])
    images.fingerprint()


def _sign_index(file: Path) -> None:
    """Make the checksum that an index vouches with fit; one that cannot be parsed stays as it is."""
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            columns = {name: opened.get_tensor(name).numpy().copy() for name in index.COLUMNS}
        index.write_index(file, {name: lambda c=column: [c] for name, column in columns.items()}, about)
    except Exception:  # of whatever the mutation has made of it
        return


def every_json(folder: Path) -> None:
    """What reads any JSON object and any log."""
    for file in folder.rglob("*.json"):
        read_json(file, "file")
    for file in folder.rglob("*.jsonl"):
        read_log(file)


def object_array() -> bytes:
    """A ``.npy`` that holds a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()
