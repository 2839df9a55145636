"""Images wherever they lie: read and decoded from each kind of place, and shards looked through for their index."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.loader import training_batches
from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.indexing import index_shards
from flowprior.data.stores.recognise import open_store
from flowprior.data.stores.tar import TarArchive
from flowprior.data.stores.zip import ZipArchive
from flowprior.distributed import World
from flowprior.training.config import TrainConfig
from scripts.benchmarks.data_cases import jpeg_folder
from scripts.benchmarks.measure import Case

if TYPE_CHECKING:
    import pyarrow

IMAGES_PER_SHARD, ROWS_PER_GROUP = 64, 100  # as many rows as Hugging Face's library writes


def image_places(level: str, device: torch.device, folder: Path) -> Case:
    """The same JPEG files in a folder and in every kind of place, decoded, cropped to 256 and mirrored by the training's process, in the
    place's usual order."""
    count, batch, size = (8, 4, 32) if level == "tiny" else (512, 32, 256)
    places, left_out = every_place(folder, count)
    streams = {kind: _batches(place, size, batch, device) for kind, place in places.items()}
    variants = {kind: lambda stream=stream: next(stream) for kind, stream in streams.items()}
    return Case(f"{batch} of {count} JPEG files, 500 x 375 to {size} px", "images", batch, variants, left_out=left_out)


def cold_places(level: str, device: torch.device, folder: Path) -> Case:
    """The same from a disk that has to be read: all images once, opened anew when the system has forgotten their files."""
    count, batch, size = (8, 4, 32) if level == "tiny" else (512, 32, 256)
    places, left_out = every_place(folder, count)
    streams: dict[str, Iterator[object]] = {}

    def forget(kind: str) -> None:
        drop_from_memory(folder)
        streams[kind] = _batches(places[kind], size, batch, device)

    def read(kind: str) -> None:
        for _ in range(count // batch):
            next(streams[kind])

    for kind in places:
        forget(kind)
    variants = {kind: lambda kind=kind: read(kind) for kind in places}
    return Case(
        f"{count} JPEG files, 500 x 375 to {size} px, not in memory",
        "images",
        count,
        variants,
        forget={kind: lambda kind=kind: forget(kind) for kind in places},
        left_out=left_out,
    )


def cold_reading(level: str, device: torch.device, folder: Path) -> Case:
    """Small files in random order from a disk that has to be read, and not decoded: what a file system takes for each of many files."""
    count = 100 if level == "tiny" else 20_000
    random, images = np.random.default_rng(0), folder / "folder" / "class"
    images.mkdir(parents=True)
    for number in range(count):
        (images / f"{number:06d}.jpg").write_bytes(b"\xff\xd8\xff" + random.bytes(4000))
    places = {"folder": folder / "folder", "tar": tar_shards(folder / "tar", sorted(images.iterdir()), 1000)}
    stores = {kind: open_store(str(place), StoreOptions(label_column="none")) for kind, place in places.items()}
    order = random.permutation(count).tolist()

    def read(kind: str) -> None:
        for index in order:
            stores[kind].read(index)

    variants = {kind: lambda kind=kind: read(kind) for kind in places}
    forget = dict.fromkeys(places, lambda: drop_from_memory(folder))
    return Case(f"{count} files of 4 kB, not in memory", "images", count, variants, forget=forget)


def _batches(place: Path, size: int, batch: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    config = ImageConfig("files", str(place), size, flip=True, label_column="none")
    return iter(training_batches(open_images(config), TrainConfig(global_batch=batch), World(device=device)))


def every_place(folder: Path, count: int) -> tuple[dict[str, Path], dict[str, str]]:
    """``count`` JPEG files in every kind of place by its name, the folder first; and the kinds that this machine cannot write, with why."""
    images = sorted((jpeg_folder(folder / "folder", count) / "class").iterdir())
    places = {
        "folder": folder / "folder",
        "tar": tar_shards(folder / "tar", images),
        "zip": zip_file(folder / "images.zip", images),
    }
    try:
        places["Parquet"], places["Arrow"] = (
            parquet_files(folder / "parquet", images),
            arrow_files(folder / "arrow", images),
        )
    except ImportError:
        return places, dict.fromkeys(("Parquet", "Arrow"), "pyarrow is not there")
    return places, {}


def drop_from_memory(folder: Path) -> None:
    """The system forgets what it has read of the files below ``folder``: of all files where it lets us, else of these, but not their names."""
    os.sync()  # what is not yet written is not forgotten
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for file in filter(Path.is_file, folder.rglob("*")):
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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


def tar_shards(folder: Path, images: list[Path], size: int = IMAGES_PER_SHARD) -> Path:
    """``folder``, filled with shards of these files."""
    folder.mkdir()
    for number, part in enumerate(_parts(images, size)):
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
    import pyarrow.parquet

    folder.mkdir()
    pyarrow.parquet.write_table(_table(images), folder / "images.parquet", row_group_size=ROWS_PER_GROUP)
    return folder


def arrow_files(folder: Path, images: list[Path]) -> Path:
    """``folder`` with an Arrow file of these files, as Hugging Face's library saves them."""
    import pyarrow

    folder.mkdir()
    table = _table(images)
    with pyarrow.ipc.new_stream(folder / "images.arrow", table.schema) as stream:
        stream.write_table(table, ROWS_PER_GROUP)
    return folder


def _table(images: list[Path]) -> pyarrow.Table:
    import pyarrow

    return pyarrow.table({"image": [image.read_bytes() for image in images]})


def _parts(images: list[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(images)
    while part := list(itertools.islice(rest, size)):
        yield part
