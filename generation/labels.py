"""Which classes the sampled images are of: equal shares, or those of the data or of the reference that they are compared with."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowprior.data.images import open_images
from flowprior.errors import UserError
from flowprior.notes import counted, note
from flowprior.training.randomness import stream_seed
from generation.config import GenerationConfig
from generation.reference import class_counts, classes_of_file, counts_by_name

# Shares that are nearer than this in total variation count as equal: i mod classes is within half an image of a class then anyway
# for thousands of images, and FID's own noise is larger.
A_LITTLE = 0.01


class ClassShares(NamedTuple):
    """How the labels of samples are chosen; ``counts`` are images of every class of the set whose shares they follow, None: equal."""

    description: str
    counts: tuple[int, ...] | None = None

    def labels(self, num_classes: int, length: int) -> Tensor:
        """Labels of images 0, 1, ..., at least ``length`` of them or one period: image i has ``labels[i % len(labels)]``."""
        if self.counts is None:
            return torch.arange(num_classes)
        return torch.tensor(class_sequence(self.counts, min(length, sum(self.counts))))


EQUAL = ClassShares("i mod number of classes")


def choose_shares(config: GenerationConfig, saved: dict[str, Any]) -> ClassShares:
    """What ``sample.class_shares`` asks for.

    Args:
        config: of the stage.
        saved: the generator's ``config.json``: ``about`` has the ``class_counts`` of its training data, or the data are looked at.

    Raises:
        UserError: the data are not there, or are not of the generator's classes.
    """
    wanted, about = config.sample.class_shares, saved["about"]
    if wanted == "equal":
        return EQUAL
    of_data = wanted == "data" or config.evaluate.uses_data
    counts = _counts_of_data(config, about) if of_data else _counts_of_reference(config, about)
    classes = saved.get("shape", {}).get("num_classes")
    if counts is not None and not of_data and classes is not None and len(counts) < classes:
        counts += (0,) * (classes - len(counts))  # labels in an .npz do not name classes of which it has no image
    if counts is not None and classes not in (None, len(counts)):
        if not of_data:
            there = counted(len(counts), "class", "classes")
            note(f"the reference has {there} and the generator {classes}: samples are in equal shares")
            return EQUAL
        there = counted(len(counts), "class", "classes")
        raise UserError(f"the data have {there} and the generator {classes}: give its own data")
    if counts is not None and not of_data and (own := about.get("class_counts")) and len(own) == len(counts):
        # Samples that have the data's shares need not be drawn again for a reference that has nearly the same.
        of_data = total_variation(counts, own) <= A_LITTLE
        counts = tuple(map(int, own)) if of_data else counts
    if counts is None or (wanted == "auto" and total_variation(counts, [1] * len(counts)) <= A_LITTLE):
        return EQUAL
    description = f"in the class shares of the {'data' if of_data else 'reference'} ({stream_seed(*counts):016x})"
    return ClassShares(description, counts)


def _counts_of_data(config: GenerationConfig, about: dict[str, Any]) -> tuple[int, ...]:
    if about.get("class_counts"):
        return tuple(map(int, about["class_counts"]))
    try:
        return class_counts(open_images(config.data))
    except UserError as error:
        raise UserError(f"{error}; or write sample.class_shares=equal") from None


def _counts_of_reference(config: GenerationConfig, about: dict[str, Any]) -> tuple[int, ...] | None:
    """None where the reference does not tell, or its classes are not the generator's."""
    reference = config.evaluate.reference
    if reference.endswith(".npz"):
        counts, names = classes_of_file(Path(reference)) if Path(reference).is_file() else (None, None)
        return counts_by_name(counts, names, about.get("class_names"))
    images = open_images(config.data.at(reference))
    names = about.get("class_names")
    return counts_by_name(class_counts(images), images.class_names, names) if names else None


def class_sequence(counts: Sequence[int], length: int) -> list[int]:
    """Classes of images 0 to ``length`` - 1, in the shares of ``counts`` and evenly spread.

    Among the first n images, every class c has its share of n to within one image, for every n, and sum(counts) images have exactly
    ``counts``: the k-th image of class c is due between (k - 1) / share and k / share, and the earliest due is next (Baruah et al.
    1996, "Proportionate progress", for one processor). Equal counts give i mod number of classes.

    Args:
        counts: images of every class; a class of none does not come.
        length: at most sum(counts), after which the sequence begins anew.
    """
    total, sequence = sum(counts), []
    waiting = [(0, c) for c, count in enumerate(counts) if count]  # (when it may come, class)
    due: list[tuple[int, int]] = []  # (when it has to have come, class)
    made = [0] * len(counts)
    for place in range(length):
        while waiting and waiting[0][0] <= place:
            _, c = heapq.heappop(waiting)
            heapq.heappush(due, (-(-(made[c] + 1) * total // counts[c]), c))
        _, c = heapq.heappop(due)
        sequence.append(c)
        made[c] += 1
        heapq.heappush(waiting, (made[c] * total // counts[c], c))
    return sequence


def total_variation(first: Sequence[int], second: Sequence[int]) -> float:
    """Half the sum of the differences between the classes' shares, in [0, 1]; of equally many classes, with images in each set."""
    totals = sum(first), sum(second)
    return sum(abs(a / totals[0] - b / totals[1]) for a, b in zip(first, second, strict=True)) / 2


def mismatch(samples: Sequence[int], reference: Sequence[int], names: Sequence[str]) -> str:
    """A sentence where the classes' shares of samples and reference differ by more than a little; else empty."""
    most = max(len(samples), len(reference)) if samples and reference else 0
    # Labels do not name classes of which there is no image.
    samples, reference = ([*counts, *[0] * (most - len(counts))] for counts in (samples, reference))
    # Whole images cannot have the shares exactly: each class is off by less than one.
    rounding = most / (2 * sum(samples)) if most and sum(samples) else 0.0
    if not most or total_variation(samples, reference) <= max(A_LITTLE, rounding):
        return ""
    shares = [(a / sum(samples), b / sum(reference)) for a, b in zip(samples, reference)]
    worst = max(range(len(shares)), key=lambda c: abs(shares[c][0] - shares[c][1]))
    of_samples, of_reference = shares[worst]
    name = names[worst] if len(names) == len(shares) else worst
    return (
        f"the samples' classes are in other shares than the reference's (class {name}: {of_samples:.1%} against "
        f"{of_reference:.1%}; total variation {total_variation(samples, reference):.3f}): FID counts that as a distance"
    )
