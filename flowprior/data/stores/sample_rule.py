"""Which members of an archive are images, and what says the label of each: webdataset's members of one key, or folders.

The key is folders and name up to the name's first dot, as webdataset has it; what lies behind the dot is the extension.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from flowprior.data.stores.archive import Archive, Member, data_members, named
from flowprior.data.stores.base import printable
from flowprior.data.stores.folder_listing import EXTENSIONS
from flowprior.data.stores.labels import LABEL_NAMES, NO_LABEL, written_label
from flowprior.errors import UserError, one_line

IMAGE_KINDS = {extension[1:] for extension in EXTENSIONS}
BESIDE = ("cls", "json", "txt")  # members that may say a label, the first of them first
LONGEST_LABEL, LONGEST_JSON = 4096, 1 << 20  # bytes
FIRST_LOOK, LONG_LOOK = 1000, 100_000  # members of the first archive by which the kind of labels is told


class SampleRule(NamedTuple):
    """Which members are images, and what says their labels.

    Attributes:
        image: extension of the images; empty: any of those that are read.
        label: ``cls``, ``json`` or ``txt`` beside the image, ``folder`` above it, or ``none``.
        field: of the JSON object.
        guessed: whether nobody has said so.
        note: what else a person should know of it.
    """

    image: str
    label: str
    field: str = ""
    guessed: bool = True
    note: str = ""

    @property
    def source(self) -> str:
        """Where labels stand, in words."""
        names = {"json": f"field '{self.field}' of .json files", "folder": "folders", NO_LABEL: NO_LABEL}
        return names.get(self.label, f".{self.label} files")

    @property
    def is_beside(self) -> bool:
        """Whether labels are members of their own."""
        return self.label in BESIDE

    def split(self, name: bytes) -> tuple[str, str]:
        """Key and extension of a member. Without labels beside them, images are files of their own, whose last dot counts."""
        text = os.fsdecode(name)
        folder, slash, base = text.rpartition("/")
        if self.is_beside or self.image:
            stem, _, extension = base.partition(".")
        else:
            stem, _, extension = base.rpartition(".")
        return folder + slash + stem, extension.lower()

    def is_image(self, extension: str) -> bool:
        return extension == self.image if self.image else extension in IMAGE_KINDS

    def is_label(self, extension: str) -> bool:
        return self.is_beside and extension == self.label


def choose_rule(archive: Archive, image: str, label: str) -> SampleRule:
    """What the options ask for, or what the first members of ``archive`` tell.

    Args:
        archive: the first one.
        image: extension of the images, or empty.
        label: ``none``, ``folder``, an extension, a field of .json, or empty.

    Raises:
        UserError: several fields of .json may be the label.
    """
    if label in (NO_LABEL, "folder", "cls", "txt"):
        return SampleRule(image, label, guessed=False)
    if label:
        return SampleRule(image, "json", label, guessed=False)
    by_key = SampleRule(image, "cls")
    images: set[str] = set()
    beside: dict[str, dict[str, Member]] = {kind: {} for kind in BESIDE}
    for number, member in enumerate(data_members(archive)):
        key, extension = by_key.split(member.name)
        if by_key.is_image(extension):
            images.add(key)
        elif extension in beside:
            beside[extension].setdefault(key, member)
        told = any(images & found.keys() for found in beside.values())
        if number >= LONG_LOOK or (number >= FIRST_LOOK and told):
            break
    note = ""
    for kind in BESIDE:
        first = next((member for key, member in beside[kind].items() if key in images), None)
        if first is None:
            continue
        if kind != "json":
            return SampleRule(image, kind)
        fields = _json_object(archive, first)
        named = [name for name in LABEL_NAMES if name in fields]
        if len(named) > 1:
            raise UserError(
                f"the .json of {archive.path} have the fields {', '.join(named)}, each of which may be the label: write "
                f"data.label_column={named[0]}, say"
            )
        if named:
            return SampleRule(image, "json", named[0])
        note = f"the .json of {archive.path} have no field that is called a label ({', '.join(fields)[:160]}): data.label_column= names it"
    return SampleRule(image, "folder", note=note)


def label_of(archive: Archive, member: Member, rule: SampleRule) -> str:
    """The label that a member beside an image says; empty where it says none, unless somebody has named the field."""
    if rule.label == "json":
        fields = _json_object(archive, member)
        if rule.field not in fields and not rule.guessed:
            there = ", ".join(map(printable, fields))[:160] or "none"
            raise UserError(
                f"{named(archive, member)} has no field '{rule.field}', which data.label_column asks for; its fields are {there}"
            )
        return written_label(fields.get(rule.field, ""), f"'{rule.field}' in {named(archive, member)}")
    return _text(archive, member, LONGEST_LABEL).strip()


def _text(archive: Archive, member: Member, longest: int) -> str:
    if member.size > longest:
        raise UserError(
            f"{named(archive, member)} has {member.size} bytes, and is no label: write data.label_column={NO_LABEL}"
        )
    try:
        return archive.contents(member).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{named(archive, member)} is no text in UTF-8: write data.label_column={NO_LABEL}") from error


def _json_object(archive: Archive, member: Member) -> dict[str, object]:
    try:
        value = json.loads(_text(archive, member, LONGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{named(archive, member)} is no JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError(f"{named(archive, member)} is no JSON object: write data.label_column={NO_LABEL}")
    return value
