"""The same pictures as people keep them: a folder, tar shards, a zip, a list, Parquet, and a saved data set."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image


class Picture(NamedTuple):
    """An encoded image and its class."""

    key: str
    label: str
    data: bytes
    extension: str = "png"

    @property
    def file(self) -> str:
        return f"{self.label}/{self.key}.{self.extension}"


def encoded(seed: int, size: tuple[int, int] = (20, 18), extension: str = "png") -> bytes:
    """A picture of noise, (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"png": "PNG", "jpg": "JPEG", "bmp": "BMP"}[extension])
    return buffer.getvalue()


def pictures(count: int, classes: Sequence[str] = ("ant", "bee"), extension: str = "png", **options) -> list[Picture]:
    """Pictures in the order of a folder: class by class, and by name in each."""
    made = [
        Picture(
            f"{number:04d}",
            classes[number * len(classes) // count],
            encoded(number, extension=extension, **options),
            extension,
        )
        for number in range(count)
    ]
    return sorted(made, key=lambda picture: (picture.label, picture.key))


def write_folder(folder: Path, images: Sequence[Picture]) -> Path:
    for image in images:
        (folder / image.label).mkdir(parents=True, exist_ok=True)
        (folder / image.file).write_bytes(image.data)
    return folder


def write_shards(folder: Path, images: Sequence[Picture], per_shard: int = 3, label: str = "cls") -> Path:
    """By webdataset's own writer."""
    webdataset = pytest.importorskip("webdataset")

    folder.mkdir(parents=True)
    names = sorted({image.label for image in images})
    labels = {"cls": lambda image: names.index(image.label), "txt": lambda image: image.label}
    labels["json"] = lambda image: {"label": image.label, "width": 18}
    with webdataset.ShardWriter(str(folder / "set-%06d.tar"), maxcount=per_shard, verbose=0) as writer:
        for image in images:
            beside = {label: labels[label](image)} if label else {}
            writer.write({"__key__": image.key, image.extension: image.data, **beside})
    return folder


def write_gnu_tar(file: Path, images: Sequence[Picture], folder: Path, *options: str) -> Path:
    """By GNU tar, of class folders."""
    write_folder(folder, images)
    subprocess.run(["tar", "-cf", str(file), *options, "-C", str(folder), "."], check=True)
    return file


def write_tar(file: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """By Python's tarfile, of any members."""
    with tarfile.open(file, "w", format=format) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def write_zip(file: Path, images: Sequence[Picture], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for image in images:
            archive.writestr(image.file, image.data)
    return file


def write_parquet(
    folder: Path, images: Sequence[Picture], per_file: int = 6, per_group: int = 2, label: str = "label"
) -> Path:
    """Files of bytes and words, by pyarrow."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    for first in range(0, len(images), per_file):
        part = images[first : first + per_file]
        columns = {
            "image": [image.data for image in part],
            **({label: [image.label for image in part]} if label else {}),
        }
        file = folder / f"part-{first // per_file:05d}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=per_group)
    return folder


def as_dataset(images: Sequence[Picture], label: str = "label"):
    """Of Hugging Face's library, with its features of images and classes."""
    import datasets

    names = sorted({image.label for image in images})
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": image.data, "path": None} for image in images],
        label: [names.index(image.label) for image in images],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def write_saved(folder: Path, images: Sequence[Picture], shards: int = 2) -> Path:
    """As Hugging Face's library saves it."""
    as_dataset(images).save_to_disk(str(folder), num_shards=shards)
    return folder


def write_hub(folder: Path, images: Sequence[Picture], split: str = "train") -> str:
    """A data set as it lies on the hub, in a folder that stands in for it; its name."""
    import datasets

    (folder / "data").mkdir(parents=True)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    as_dataset(images).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return f"hf://{folder}:{split}"
