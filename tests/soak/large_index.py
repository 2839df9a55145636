"""Row 19: as many samples as a large data set has, indexed in a bounded memory, each found again once an epoch."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowprior.data.order import epoch_order
from flowprior.data.stores.base import ImageStore
from flowprior.data.stores.indexing import THREADS
from flowprior.data.stores.recognise import open_store
from flowprior.data.stores.shard_files import Window
from soak.processes import Process
from soak.stages import Soak, Trial

BYTES_A_SAMPLE = 64  # of a process's memory, the pages of the index among them
SAMPLES_PER_SHARD, CLASSES = 10_000, 1000
# Of the shards that are looked through at once; of a million samples it is within the bound.
UNDER_WAY = THREADS * (2 * Window.NEAR + SAMPLES_PER_SHARD * BYTES_A_SAMPLE)
INDEXED, TRAINED = "indexed", "opened with its index, and an epoch's order beside it"


def large_index(soak: Soak) -> Iterator[Trial]:
    """Tar and zip files of tiny samples: what their index takes when it is made, and in another process when it is there."""
    count = soak.few(1_000_000, 20_000)
    for kind, write in (("tar", write_tar), ("zip", write_zip)):
        place, few = soak.folder / "large" / kind, soak.folder / "large" / f"few_{kind}"
        for folder, samples in ((place, count), (few, CLASSES)):
            folder.mkdir(parents=True)
            for first in range(0, samples, SAMPLES_PER_SHARD):
                write(folder / f"{first:08d}.{kind}", range(first, min(first + SAMPLES_PER_SHARD, samples)))
        for what in (INDEXED, TRAINED):
            yield f"{count} samples in {kind} files, {what}", _in_bounded_memory(soak, place, few, what)
        yield f"{count} samples in {kind} files, each found once an epoch", _all_found(open_store(str(place)), count)
        shutil.rmtree(place)


def sample(number: int) -> tuple[str, bytes, bytes]:
    """Its key, label and image; only a JPEG file's first bytes, since nothing is decoded."""
    return f"n{number % CLASSES:08d}_{number:08d}", b"%d" % (number % CLASSES), b"\xff\xd8\xff%d" % number


def write_tar(file: Path, numbers: range) -> None:
    with open(file, "wb") as opened:
        for number in numbers:
            key, label, image = sample(number)
            for name, data in ((f"{key}.cls", label), (f"{key}.jpg", image)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                opened.write(entry.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        opened.write(bytes(2 * tarfile.BLOCKSIZE))


def write_zip(file: Path, numbers: range) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in numbers:
            key, label, image = sample(number)
            archive.writestr(f"{key}.cls", label)
            archive.writestr(f"{key}.jpg", image)
    file.write_bytes(buffer.getvalue())


def _in_bounded_memory(soak: Soak, place: Path, few: Path, what: str) -> str | None:
    figures = soak.folder / "figures.json"
    figures.unlink(missing_ok=True)
    process = Process(lambda: _measure(place, few, what, figures), soak.folder / "output" / "large")
    process.wait(1200)
    if process.code != 0:
        return f"the process ended with {process.code}: {process.said()[-300:]}"
    told = json.loads(figures.read_text())
    each = told["bytes"] / told["count"]
    print(f"    {place.name}, {what}: {told['seconds']:.1f} s, {each:.1f} bytes a sample", flush=True)
    allowed = BYTES_A_SAMPLE * told["count"] + (UNDER_WAY if soak.quick else 0)
    return None if told["bytes"] <= allowed else f"{told['bytes']} bytes of memory in place of {allowed}"


def _measure(place: Path, few: Path, what: str, figures: Path) -> None:
    open_store(str(few))  # what is imported and made once
    before, start = _resident(), time.perf_counter()
    store = open_store(str(place))
    seconds = time.perf_counter() - start
    order = epoch_order(0, 0, len(store)) if what == TRAINED else None
    figures.write_text(json.dumps({"count": len(store), "seconds": seconds, "bytes": _peak() - before}))
    del order


def _resident() -> int:
    """Bytes of memory that this process has now, from which on its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _all_found(store: ImageStore, count: int) -> str | None:
    """Every number is read once in an epoch's order, with its class."""
    seen = np.zeros(count, bool)
    for index in epoch_order(1, 0, len(store)).tolist():
        number = int(store.read(index)[3:])
        if seen[number] or store.class_names[int(store.labels[index])] != str(number % CLASSES):
            return f"sample {number} comes twice, or its class is another"
        seen[number] = True
    return None if seen.all() else f"{count - seen.sum()} samples are missing"
