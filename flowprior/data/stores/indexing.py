"""From shards to their index: each is looked through once, several at a time, and what they say of labels becomes classes."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from flowprior.data.stores.archive import Archive
from flowprior.data.stores.folder_listing import READ, SPLITS, kinds_in_words, some_of
from flowprior.data.stores.index import COLUMNS, DTYPES, Columns
from flowprior.data.stores.labels import NO_LABEL, Classes, classes_of_words, origin, sorted_classes, unlabelled
from flowprior.data.stores.sample_rule import SampleRule, choose_rule
from flowprior.data.stores.samples import ShardSamples, collect_samples
from flowprior.errors import UserError
from flowprior.progress import progress_bar

THREADS = 4  # each holds a shard's samples, and the memory that it was given it keeps
PART_BYTES = 1 << 20  # of a column, a multiple of every number's


def index_shards(
    shards: Sequence[Path], open_archive: Callable[[Path], Archive], image: str, label: str, where: str
) -> tuple[Columns, list[str], list[str]]:
    """Look through all shards.

    Args:
        shards: in the samples' order.
        open_archive: opens one of them.
        image, label: see :func:`~flowprior.data.stores.sample_rule.choose_rule`.
        where: what a person named.

    Returns:
        The columns of :class:`~flowprior.data.stores.index.ShardIndex`, the names of the classes, and notes.

    Raises:
        UserError: a shard is damaged, there are no images, or their labels are none.
    """
    rule, table = choose_rule(open_archive(shards[0]), image, label), _Table()
    with ThreadPoolExecutor(THREADS) as pool:  # a network's disk answers many at once
        found = pool.map(lambda shard: collect_samples(open_archive(shard), rule), shards)
        quiet = os.environ.get("RANK", "0") != "0"
        for part, shard in zip(
            progress_bar(found, total=len(shards), desc="index", unit="shard", disable=quiet, delay=1.0), shards
        ):
            table.add(part, shard)
    if not table.count:
        said = f" but {kinds_in_words(table.unread)}" if table.unread else ""
        raise UserError(
            f"{where} holds no images ({rule.image or READ}){said}: data.image_column= names the extension behind a name's first dot"
        )
    classes = _classes(table, rule, where)
    notes = [rule.note] if rule.note else []
    if table.unread:
        notes.append(f"in {where} are not read: {kinds_in_words(table.unread)}")
    return table.columns(classes.places), classes.names, notes + classes.notes


class _Table:
    """The samples of all shards, shard by shard, in files without a name: the memory holds one shard's at a time."""

    def __init__(self) -> None:
        self.files = {name: tempfile.TemporaryFile() for name in COLUMNS}
        self.count, self.name_bytes, self.words = 0, 0, dict[str, int]()
        self.unread, self.without_label = Counter[str](), ""

    def add(self, part: ShardSamples, shard: Path) -> None:
        if "" in part.labels.words and not self.without_label:
            first = part.labels.codes.index(part.labels.words[""])
            self.without_label = f"{shard}: {os.fsdecode(part.name(first))}"
        into = np.array([self.words.setdefault(word, len(self.words)) for word in part.labels.words], np.int32)
        columns = {
            "offsets": part.offsets,
            "starts": np.array([self.count]),
            "name_ends": np.frombuffer(part.name_ends, np.int32) + np.int64(self.name_bytes),
            "sizes": part.sizes,
            "labels": into[np.frombuffer(part.labels.codes, np.int32)] if len(part) else b"",
            "packed": part.packed,
            "checks": part.checks,
            "names": part.names,
        }
        for name, column in columns.items():
            self.files[name].write(memoryview(column))
        self.count, self.name_bytes, self.unread = (
            self.count + len(part),
            self.name_bytes + len(part.names),
            self.unread + part.unread,
        )

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """A column; of labels, which of the words each is."""
        self.files[name].seek(0)
        while data := self.files[name].read(PART_BYTES):
            yield np.frombuffer(data, DTYPES[COLUMNS[name]])

    def columns(self, places: np.ndarray) -> Columns:
        """All of them, with ``places`` instead of the words."""
        columns: Columns = {name: partial(self.parts, name) for name in COLUMNS}
        return columns | {"labels": lambda: (places[codes] for codes in self.parts("labels"))}

    def counts(self) -> np.ndarray:
        """Samples of every word."""
        return sum(
            (np.bincount(codes, minlength=len(self.words)) for codes in self.parts("labels")),
            np.zeros(len(self.words), int),
        )


def _classes(table: _Table, rule: SampleRule, where: str) -> Classes:
    """The classes, in the place of every written word."""
    words = list(table.words)
    if rule.label == "folder":
        return _folder_classes(words, where, table.count)
    guessed = rule.guessed or rule.label == NO_LABEL
    return classes_of_words(words, table.counts(), rule.source, where, table.without_label, guessed)


def _folder_classes(folders: list[str], where: str, images: int) -> Classes:
    """Classes by the first folder below those that all images share."""
    paths = [[part for part in folder.split("/") if part not in ("", ".")] for folder in folders]
    shared = os.path.commonprefix(paths)
    below = [path[len(shared)] if len(path) > len(shared) else "" for path in paths]
    if not any(below):
        return unlabelled(where, images, len(folders), shared[-1] if shared else "")
    names = sorted(set(below))
    if not all(names):
        raise UserError(
            f"{where} holds images beside the class folders {some_of(names[1:])}: pack them into the folders of their classes, or write "
            "data.label_column=none"
        )
    if all(name.lower() in SPLITS for name in names):
        raise UserError(f"{where} holds {' and '.join(names)}, which are no classes: pack {names[0]} by itself")
    classes = sorted_classes(names)
    places = dict(zip(names, classes.places.tolist()))
    note = origin(where, images, len(names), "its folders" + (f" below {'/'.join(shared)}" if shared else ""))
    return Classes(classes.names, np.array([places[name] for name in below], np.int32), [note])
