"""Images as uint8 tensors: embedded digits, or encoded images wherever they lie."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from flowprior.data.cifar10 import cifar10_images
from flowprior.data.crops import centre_crop, random_crop, random_resized_box
from flowprior.data.embedded import EMBEDDED, NUM_CLASSES, split_indices
from flowprior.data.image_contents import count_copies, images_fingerprint
from flowprior.data.image_reader import read_image
from flowprior.data.order import Blocks, SampleKey, epoch_order
from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.recognise import open_store
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.run.files import tensors_fingerprint
from flowprior.training.randomness import stream_seed

FORMER_SOURCES = {"folder": "files"}
BLOCKS_LOOKED_AT = 16
REMEDY = re.compile(r"(.*): ((?:mend|save|get|write) .*)", re.DOTALL)  # at the end of what is said of an image
NOT_OF_ONE_IMAGE = ("run the same command again", "start again")  # but of a file that changed meanwhile


@dataclass
class ImageConfig:
    """Where images come from, and how they are cropped."""

    source: Literal["digits", "mnist", "cifar10", "files"] = option(
        "digits",
        "digits or mnist (embedded), cifar10 (in the folder data.path), or files (what lies at data.path)",
        former_words=FORMER_SOURCES,
    )
    path: str = option(
        "",
        "for source=files, where the images lie: a folder with one sub-folder per class, .tar shards (their folder, or a pattern such as "
        "a-{000..146}.tar), a .zip, .parquet files, a saved data set, hf://name:split, or a .csv or .jsonl list; DATA= sets it in the scripts",
        changes_result=False,
    )
    size: int = option(32, "pixels on a side")
    subset: Literal["all", "train", "val"] = option(
        "all", "which of the embedded images: all, or a part of a fixed split; of cifar10, val is the test set"
    )
    download: bool = option(False, "fetch cifar10 into data.path where it is not there", changes_result=False)
    split_seed: int = option(0, "seed of that split")
    crop: Literal["centre", "random", "random_resized"] = option(
        "centre",
        "in training: centre; random, ADM's square of 80 to 100 % of the shorter side; or random_resized, of random area and aspect ratio "
        "(the latter two of files only)",
    )
    min_area: float = option(0.8, "smallest share of the image's area in a random_resized crop")
    flip: bool = option(False, "mirror every other image in training")
    image_column: str = option(
        "",
        "column of the images in a table, of their paths in a list, or the images' extension in archives; empty: what is usual",
        changes_result=False,  # which images these are is a matter of their fingerprint
    )
    label_column: str = option(
        "",
        "column of the labels in a table or a list; in archives cls, txt, folder, or a field of .json; none: without labels; empty: what is usual",
        changes_result=False,
    )

    shuffle_block: int | None = option(
        None,
        "of shards or row groups: how many at a time are shuffled among themselves in training, where random reads are dear; 0: all; "
        "null: all, but 4 of Parquet's row groups",
    )

    skip_bad: bool = option(
        False,
        "leave out images that cannot be read: all are decoded once before, and the list of them is kept",
        changes_result=False,  # which images these are is a matter of their fingerprint
    )

    def __post_init__(self) -> None:
        self.source = FORMER_SOURCES.get(self.source, self.source)  # type: ignore[assignment]
        if self.path and self.embedded:
            raise ValueError(
                f"path names {self.path}, and source={self.source} reads no files: write data.source=files as well, or DATA=<place> before a script"
            )
        if self.size < 8:
            raise ValueError(f"images are at least 8 pixels on a side, not {self.size}")
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area lies in (0, 1], not at {self.min_area}")
        if self.shuffle_block is not None and self.shuffle_block < 0:
            raise ValueError(f"shuffle_block is 0 or more, or null, not {self.shuffle_block}")

    @property
    def embedded(self) -> bool:
        """Whether the images come inside a Python package."""
        return self.source in EMBEDDED

    @property
    def place(self) -> str:
        """Where images of source=files lie, in a form that does not depend on the working directory; else the source's name."""
        if self.source != "files":
            return self.source
        return os.path.realpath(self.path) if os.path.exists(self.path) else self.path

    @property
    def has_subsets(self) -> bool:
        """Whether ``subset=train`` leaves out images that ``subset=val`` has."""
        return self.source != "files"

    def at(self, path: str, **changes: Any) -> ImageConfig:
        """The images at another place, read by the same columns; ``changes`` to other options."""
        return replace(self, source="files", path=path, **changes)

    @property
    def columns(self) -> StoreOptions:
        """What is what in a place of several columns."""
        return StoreOptions(self.image_column, self.label_column, self.shuffle_block, self.skip_bad)


class ImageSource(Protocol):
    """A keyed data set of images; ``batch`` returns ``image`` uint8 (B, 3, S, S), ``label`` int64 (B,), ``index`` int64 (B,)."""

    kind: str  # of place: the embedded set's name, or a store's
    num_classes: int
    class_names: list[str]

    def fingerprint(self) -> str:
        """16 hex digits of which images these are and how they are cropped for evaluation."""
        ...

    def says_of_order(self) -> str:
        """What to say of an order in training in which not every image may follow any other; else empty."""
        ...

    def __len__(self) -> int: ...

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]: ...


def open_images(config: ImageConfig, seed: int = 0) -> ImageSource:
    """The image source that a config names; ``seed`` is the augmentation's."""
    return HeldImages(config, seed) if config.has_subsets else StoredImages(config, seed)


class HeldImages:
    """One of the data sets that have a name, held in memory."""

    def __init__(self, config: ImageConfig, seed: int) -> None:
        if config.source == "cifar10":
            held = cifar10_images(config.path, config.subset, config.size, config.download)
            self.images, self.labels, self.class_names = held
        else:
            images, labels = EMBEDDED[config.source].images(config.size)
            chosen = split_indices(len(images), config.subset, config.split_seed)
            self.images, self.labels = images[chosen], labels[chosen]
            self.class_names = [str(n) for n in range(NUM_CLASSES)]
        self.kind, self.flip, self.seed, self.num_classes = config.source, config.flip, seed, len(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return tensors_fingerprint({"images": self.images, "labels": self.labels})

    def says_of_order(self) -> str:
        return ""

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        index = torch.tensor([key.index for key in keys])
        images = self.images[index]
        if self.flip:
            mirrored = torch.tensor([key.epoch >= 0 and _generator(self.seed, key).random() < 0.5 for key in keys])
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return {"image": images, "label": self.labels[index], "index": index}


class StoredImages:
    """Encoded images, wherever they lie, decoded and cropped."""

    def __init__(self, config: ImageConfig, seed: int) -> None:
        self.store = open_store(config.path, config.columns)
        self.kind, self.class_names, self.labels = self.store.kind, self.store.class_names, self.store.labels
        self.num_classes, self.config, self.seed = len(self.class_names), config, seed

    def __len__(self) -> int:
        return len(self.store)

    @property
    def blocks(self) -> Blocks | None:
        """Of the order in training; None where any image may follow any."""
        starts, mixed = self.store.starts, self.store.mixed
        return Blocks(starts, mixed) if 0 < mixed < len(starts) else None

    def says_of_order(self) -> str:
        if (blocks := self.blocks) is None:
            return ""
        count = -(-len(blocks.starts) // blocks.mixed)
        several = np.array_split(epoch_order(self.seed, 0, len(self), blocks), count)[:BLOCKS_LOOKED_AT]
        classes = np.mean([len(np.unique(self.labels[block])) for block in several])
        return (
            f"images are shuffled within blocks of {blocks.mixed} {self.store.part}s; a block has about "
            f"{len(self) * blocks.mixed // len(blocks.starts)} of the {len(self)} images, from {classes:.0f} of the {self.num_classes} classes; "
            f"data.shuffle_block=0 shuffles all images together"
        )

    def fingerprint(self) -> str:
        return images_fingerprint(self.store, ("centre", self.config.size))

    def copies_of(self, images: StoredImages) -> int:
        """How many of these images, up to 4,096 of them spread evenly, have the contents of one of ``images``."""
        return count_copies(self.store, images.store)

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        images = torch.stack([self._read(key) for key in keys])
        index = torch.tensor([key.index for key in keys])
        return {"image": images, "label": torch.from_numpy(self.labels[index.numpy()].astype(np.int64)), "index": index}

    def _read(self, key: SampleKey) -> Tensor:
        """One image, cropped and mirrored as (seed, epoch, index) say: uint8 ``(3, S, S)``."""
        with telling_of_skip_bad():
            image, config = read_image(io.BytesIO(self.store.read(key.index)), self.store.name(key.index)), self.config
        random = _generator(self.seed, key)
        if key.epoch >= 0 and config.crop == "random_resized":
            box = random_resized_box(image.height, image.width, config.min_area, random)
            image = TF.resized_crop(image, *box, [config.size, config.size], TF.InterpolationMode.BICUBIC)
        elif key.epoch >= 0 and config.crop == "random":
            image = random_crop(image, config.size, random)
        else:
            image = centre_crop(image, config.size)
        if key.epoch >= 0 and config.flip and random.random() < 0.5:
            image = TF.hflip(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@contextlib.contextmanager
def telling_of_skip_bad() -> Iterator[None]:
    """Within, an image that cannot be read is refused with the option that leaves such images out, before any other remedy."""
    try:
        yield
    except UserError as error:
        if str(error).endswith(NOT_OF_ONE_IMAGE):
            raise
        first = "write data.skip_bad=true, which leaves such images out"
        what, remedy = match.groups() if (match := REMEDY.fullmatch(str(error))) else (error, "")
        raise UserError(f"{what}: {first}, or {remedy}" if remedy else f"{what}: {first}") from error


def shared_fingerprint(images: ImageSource, world: World) -> str:
    """The fingerprint of the images, in all processes; the first process of every node looks at the files.

    Raises:
        UserError: the processes do not see equally many images, or the nodes not the same ones.
    """
    counts = world.all_gather(len(images))
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes see different images ({min(counts)} to {max(counts)} of them): give all nodes the same DATA"
        )
    looks = world.is_main or os.environ.get("LOCAL_RANK", "0") == "0"
    fingerprints = [one for one in world.all_gather(images.fingerprint() if looks else None) if one is not None]
    if len(set(fingerprints)) > 1:
        raise UserError("the nodes see different images under the same names: give all nodes the same DATA")
    return fingerprints[0]


def _generator(seed: int, key: SampleKey) -> np.random.Generator:
    return np.random.default_rng(stream_seed(seed, "augment", key.epoch, key.index))


def to_model(images: Tensor) -> Tensor:
    """uint8 images as the models see them: float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Model images in [-1, 1] as uint8, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
