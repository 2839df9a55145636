"""Images in an ``.npz`` as ADM's evaluator reads them, ``arr_0`` uint8 (N, H, W, 3): written and read a part at a time.

Parts are files of their own until the set is whole, so that an interrupted sampling goes on where it was.
"""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.errors import UserError, one_line
from flowprior.progress import progress_bar
from flowprior.run.archives import archive_members, check_expansion, is_archive, read_arrays
from flowprior.run.files import flush_to_disk, require_room
from flowprior.run.provenance import Provenance
from flowprior.run.run_folder import Stopwatch

IMAGES, LABELS = "arr_0", "labels"


def draw_parts(
    folder: Path,
    made_by: dict[str, Any],
    count: int,
    size: int,
    draw: Callable[[range], Tensor],
    world: World,
    description: str,
) -> list[Path]:
    """Draw images 0 to ``count`` - 1 in parts of ``size``, one file each; parts that an interrupted run left are kept.

    The folder's :class:`~flowprior.run.run_folder.Stopwatch` counts the seconds of all runs that the parts took.

    Args:
        folder: of the parts; one of another ``made_by`` or ``size`` is emptied first.
        made_by: how the images are made, plain values.
        count, size: of all images, and of a part.
        draw: indices to uint8 images ``(n, 3, H, W)``.
        world: parts are dealt out to all processes.
        description: before the progress bar.

    Returns:
        The parts in their order, uint8 ``(n, H, W, 3)``, once all processes are done.
    """
    provenance, contents = Provenance(folder / "parts.json", "note of the parts"), {"made_by": made_by, "size": size}
    if provenance.differing(contents, world) and world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        provenance.write(contents)
    world.barrier()
    files, stopwatch = [folder / f"{number:06d}.npy" for number in range(-(-count // size))], Stopwatch(folder)
    mine = range(world.rank, len(files), world.size)
    for number in progress_bar(mine, desc=description, unit="batch", disable=not world.is_main):
        if files[number].is_file():
            continue
        images = draw(range(number * size, min((number + 1) * size, count)))
        if number == mine.start:
            image_bytes = images[0].numel()
            require_room(folder, 2 * count * image_bytes, f"sets of {count} images, in parts and whole,")
        temporary = files[number].with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                np.save(file, images.permute(0, 2, 3, 1).contiguous().numpy())
            flush_to_disk(temporary)
            os.replace(temporary, files[number])
        finally:
            temporary.unlink(missing_ok=True)
        if world.is_main:
            stopwatch.save()
    world.barrier()
    if world.is_main:
        stopwatch.save()  # with what it waited for the others
    return files


def write_image_archive(path: Path, parts: list[Path], labels: np.ndarray) -> None:
    """Join the parts into ``path``, with ``labels (N,)`` beside them; no more than one part is in memory."""
    shapes = [load_part(part, "r").shape for part in parts]
    header = {"descr": "|u1", "fortran_order": False, "shape": (sum(shape[0] for shape in shapes), *shapes[0][1:])}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(load_part(part).tobytes())
            with archive.open(f"{LABELS}.npy", "w") as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_part(part: Path, mmap_mode: str | None = None) -> np.ndarray:
    """One of the files that :func:`draw_parts` returns."""
    try:
        return np.load(part, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the part {part} is damaged ({error}): delete it and run the same command again") from error


def archive_has_images(path: str | Path) -> bool:
    """Whether ``path`` is an ``.npz`` with an array ``arr_0``."""
    return f"{IMAGES}.npy" in archive_members(path)


class ImageArchive:
    """The images in an ``.npz``, read a batch at a time, compressed or not.

    Args:
        path: of the file; ``labels`` or ADM's ``arr_1`` are read where they are there.

    Attributes:
        count, size: how many images, and (height, width).
        labels: int64 ``(N,)``, or None.

    Raises:
        UserError: there is no such file, or it holds no uint8 ``arr_0 (N, H, W, 3)``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"there is no file of images at {self.path}")
        if is_archive(self.path):
            check_expansion(self.path, "file of images")
        with self._opened() as member:
            shape, _, dtype = _read_header(member)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
            raise UserError(f"{IMAGES} in {self.path} must be uint8 (N, H, W, 3), not {dtype} {shape}")
        self.count, self.size = shape[0], (shape[1], shape[2])
        if math.prod(shape) > member.size:
            raise UserError(f"{self.path} ends within its images: restore or delete it")
        self.labels = self._read_labels()

    def batches(self, size: int = 128, part: int = 0, parts: int = 1) -> Iterator[Tensor]:
        """A new pass over every ``parts``-th batch from number ``part`` on: uint8 ``(B, 3, H, W)`` at a time.

        Raises:
            UserError: the file ends before its last image.
        """
        height, width = self.size
        with self._opened() as member:
            _read_header(member)
            for number, first in enumerate(range(0, self.count, size)):
                rows = min(size, self.count - first)
                wanted = rows * height * width * 3
                data = member.read(wanted)
                if len(data) != wanted:
                    raise UserError(f"{self.path} ends within its images: restore or delete it")
                if number % parts == part:
                    images = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(rows, height, width, 3)
                    yield images.permute(0, 3, 1, 2)

    def _opened(self) -> _Member:
        return _Member(self.path)

    def _read_labels(self) -> Tensor | None:
        arrays = read_arrays(self.path, "file of images with labels", (LABELS, "arr_1"))
        labels = arrays[LABELS] if LABELS in arrays else arrays.get("arr_1")
        if labels is None:
            return None
        if labels.shape != (self.count,) or labels.dtype.kind not in "iu":
            raise UserError(f"{self.path} holds {self.count} images and labels of shape {labels.shape}")
        return torch.from_numpy(labels.astype(np.int64))


class _Member:
    """``arr_0.npy`` inside an archive, open for reading; whatever is wrong with either is a :class:`UserError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Member:
        try:
            self.archive = zipfile.ZipFile(self.path)
            self.file: IO[bytes] = self.archive.open(f"{IMAGES}.npy")
            self.size = self.archive.getinfo(f"{IMAGES}.npy").file_size
        except KeyError as error:
            raise UserError(f"{self.path} has no array '{IMAGES}' of images") from error
        except Exception as error:  # of a damaged directory: zipfile and struct have several
            raise UserError(f"{self.path} cannot be read as .npz ({error})") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.archive.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except Exception as error:  # of a damaged file: a wrong checksum, or one of the decompressors' own
            raise UserError(f"{self.path} is damaged ({error}): restore or delete it") from error


def _read_header(member: _Member) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of the array that begins here."""
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except UserError:
        raise
    except Exception as error:  # the header is an expression, and numpy's parser fails in a dozen ways
        raise UserError(f"{IMAGES} in {member.path} is no array ({one_line(error)})") from error
    if fortran:
        raise UserError(f"{IMAGES} in {member.path} is in Fortran order: save it in C order")
    return shape, fortran, dtype
