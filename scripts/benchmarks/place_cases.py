"""Images wherever they lie: read and decoded from each kind of place, and shards looked through for their index."""

from __future__ import annotations

import io
import itertools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.loader import training_batches
from flowprior.data.stores.indexing import index_shards
from flowprior.data.stores.tar import TarArchive
from flowprior.data.stores.zip import ZipArchive
from flowprior.distributed import World
from flowprior.training.loop import TrainConfig
from scripts.benchmarks.data_cases import jpeg_folder
from scripts.benchmarks.measure import Case

IMAGES_PER_SHARD, ROWS_PER_GROUP = 64, 100  # as many rows as Hugging Face's library writes


def image_places(level: str, device: torch.device, folder: Path) -> Case:
    """The same JPEG files in a folder and in every kind of place, decoded, cropped to 256 and mirrored by the training's process, in the
    place's usual order."""
    count, batch, size = (8, 4, 32) if level == "tiny" else (512, 32, 256)
    images = sorted((jpeg_folder(folder / "folder", count) / "class").iterdir())
    places = {
        "folder": folder / "folder",
        "tar": tar_shards(folder / "tar", images),
        "zip": zip_file(folder / "images.zip", images),
    }
    left_out = {}
    try:
        places["Parquet"] = parquet_files(folder / "parquet", images)
    except ImportError:
        left_out["Parquet"] = "pyarrow is not there"
    streams = {}
    for kind, place in places.items():
        config = ImageConfig("files", str(place), size, flip=True, label_column="none")
        streams[kind] = iter(
            training_batches(open_images(config), TrainConfig(global_batch=batch), World(device=device))
        )
    variants = {kind: lambda stream=stream: next(stream) for kind, stream in streams.items()}
    return Case(f"{batch} of {count} JPEG files, 500 x 375 to {size} px", "images", batch, variants, left_out=left_out)


def indexing(level: str, device: torch.device, folder: Path) -> Case:
    """Shards of small images with a label beside each, all of whose headers are read; what it takes beyond that, the disk decides."""
    count = 100 if level == "tiny" else 20_000
    random = np.random.default_rng(0)
    members = [
        (f"n{number % 1000:08d}_{number:08d}.{kind}", data)
        for number in range(count)
        for kind, data in (("cls", b"%d" % (number % 1000)), ("jpg", random.bytes(1000)))
    ]
    write_tar(folder / "small.tar", members)
    with zipfile.ZipFile(folder / "small.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    variants = {
        "tar": lambda: index_shards([folder / "small.tar"], TarArchive, "", "cls", "small.tar"),
        "zip": lambda: index_shards([folder / "small.zip"], ZipArchive, "", "cls", "small.zip"),
    }
    return Case(f"{count} samples of 1 kB and a label", "samples", count, variants)


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar file of these names and contents."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
            archive.members.clear()  # which it would keep all of


def tar_shards(folder: Path, images: list[Path]) -> Path:
    """``folder``, filled with shards of these files."""
    folder.mkdir()
    for number, part in enumerate(_parts(images, IMAGES_PER_SHARD)):
        write_tar(folder / f"{number:04d}.tar", [(image.name, image.read_bytes()) for image in part])
    return folder


def zip_file(file: Path, images: list[Path]) -> Path:
    """A zip file of these files, as they are."""
    with zipfile.ZipFile(file, "w") as archive:
        for image in images:
            archive.write(image, image.name)
    return file


def parquet_files(folder: Path, images: list[Path]) -> Path:
    """``folder`` with a Parquet file of these files.

    Raises:
        ImportError: pyarrow is not there.
    """
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    table = pyarrow.table({"image": [image.read_bytes() for image in images]})
    pyarrow.parquet.write_table(table, folder / "images.parquet", row_group_size=ROWS_PER_GROUP)
    return folder


def _parts(images: list[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(images)
    while part := list(itertools.islice(rest, size)):
        yield part
