"""The samples of an archive, as columns: an image each, and what lies beside it under the same key, or above it as folders.

Members of one sample need not be neighbours.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter

import numpy as np

from flowprior.data.stores.archive import Archive, Member, data_members, named
from flowprior.data.stores.labels import WrittenLabels, captions
from flowprior.data.stores.sample_rule import SampleRule, label_of
from flowprior.errors import UserError

LARGEST_IMAGE = (1 << 31) - 1  # bytes


class ShardSamples:
    """The samples of one archive, in the images' order, as columns; ``packed`` and ``checks`` only where the archive may be compressed."""

    def __init__(self) -> None:
        self.offsets, self.sizes, self.packed, self.checks = array("q"), array("i"), array("i"), array("I")
        self.names, self.name_ends, self.labels = bytearray(), array("i"), WrittenLabels()
        self.unread: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, member: Member, word: str) -> None:
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        if member.packed >= 0:
            self.packed.append(member.packed)
            self.checks.append(member.check)
        self.names += member.name
        self.name_ends.append(len(self.names))
        self.labels.add(word)

    def name(self, index: int) -> bytes:
        return bytes(self.names[self.name_ends[index - 1] if index else 0 : self.name_ends[index]])

    def in_order(self) -> ShardSamples:
        """The same samples in the order of their images."""
        ordered, words = ShardSamples(), list(self.labels.words)
        ordered.unread = self.unread
        for index in np.argsort(np.frombuffer(self.offsets, np.int64), kind="stable").tolist():
            packed = (self.packed[index], self.checks[index]) if self.packed else ()
            member = Member(self.name(index), self.offsets[index], self.sizes[index], True, *packed)
            ordered.add(member, words[self.labels.codes[index]])
        return ordered


def collect_samples(archive: Archive, rule: SampleRule) -> ShardSamples:
    """The samples of ``archive``; an image without a label has the empty word.

    Raises:
        UserError: the archive is damaged, an image is a link or has more than :data:`LARGEST_IMAGE` bytes, a sample has two images or
            labels, or its label cannot be read.
    """
    collect = (_Joined if rule.is_beside else _Alone)(archive, rule)
    for member in data_members(archive):
        key, extension = rule.split(member.name)
        is_image = rule.is_image(extension)
        if not is_image and not rule.is_label(extension):
            collect.found.unread[f".{extension}" if extension else "without extension"] += 1
        elif not member.is_file:
            raise UserError(f"{named(archive, member)} is a link or a device, and is not read: pack the file itself")
        elif max(member.size, member.packed) > LARGEST_IMAGE:
            raise UserError(f"{named(archive, member)} has {member.size} bytes, and is no image that is read")
        else:
            collect.take(member, key, is_image)
    return collect.finish()


class _Alone:
    """Images that are samples by themselves, labelled by their folders or not at all."""

    def __init__(self, archive: Archive, rule: SampleRule) -> None:
        self.archive, self.rule, self.found = archive, rule, ShardSamples()
        self.hashes = array("q")

    def take(self, member: Member, key: str, is_image: bool) -> None:
        self.add(member, key.rpartition("/")[0] if self.rule.label == "folder" else "", os.fsdecode(member.name))

    def add(self, image: Member, word: str, key: str) -> None:
        self.found.add(image, word)
        self.hashes.append(hash(key))

    def key(self, index: int) -> str:
        return os.fsdecode(self.found.name(index))

    def finish(self) -> ShardSamples:
        hashes = np.frombuffer(self.hashes, np.int64)
        hashes.sort()
        if (hashes[1:] == hashes[:-1]).any():
            seen: set[str] = set()
            for key in map(self.key, range(len(self.found))):  # two that share a hash alone pass
                if key in seen:
                    raise self.twice(key, "images")
                seen.add(key)
        return self.found

    def twice(self, key: str, what: str) -> UserError:
        return UserError(
            f"the sample {key} in {self.archive.path} has two {what}: pack it anew, or write data.image_column=jpg, say, where images of "
            "several kinds have one key"
        )


class _Joined(_Alone):
    """Images and labels that have one key, wherever in the archive they lie."""

    def __init__(self, archive: Archive, rule: SampleRule) -> None:
        super().__init__(archive, rule)
        self.images, self.words, self.late = dict[str, Member](), dict[str, str](), False

    def take(self, member: Member, key: str, is_image: bool) -> None:
        mine, other = (self.images, self.words) if is_image else (self.words, self.images)
        if key in mine:
            raise self.twice(key, "images" if is_image else "labels")
        mine[key] = member if is_image else label_of(self.archive, member, self.rule)  # type: ignore[assignment]
        if key in other:
            self.add(self.images.pop(key), self.words.pop(key), key)
            if self.rule.guessed and self.found.labels.are_captions:
                raise captions(len(self.found.labels.words), len(self.found), self.rule.source, str(self.archive.path))

    def add(self, image: Member, word: str, key: str) -> None:
        self.late |= len(self.found) > 0 and image.offset < self.found.offsets[-1]
        super().add(image, word, key)

    def key(self, index: int) -> str:
        return self.rule.split(self.found.name(index))[0]

    def finish(self) -> ShardSamples:
        for key, image in self.images.items():
            self.add(image, "", key)
        if self.words:
            labelled = set(self.hashes)
            if twice := next((key for key in self.words if hash(key) in labelled), None):
                raise self.twice(twice, "labels")
            self.found.unread[f".{self.rule.label} without an image"] += len(self.words)
        super().finish()
        return self.found.in_order() if self.late else self.found
