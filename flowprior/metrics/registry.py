"""What can be measured, and with what. A config is checked with it, so that nothing here loads torch-fidelity before it measures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flowprior.data.embedded import EMBEDDED
from flowprior.metrics.fid import fd_dinov2, fid, sfid
from flowprior.metrics.inception_score import inception_score
from flowprior.metrics.precision_recall import precision_recall
from flowprior.metrics.recognised import recognised


class ExtractorSpec(NamedTuple):
    """An extractor under torch-fidelity's name, its layers for FID, inception score, and precision and recall, what it has seen, and
    whether its weights come with this package; then it has the name of the embedded data set that it is for."""

    registered_name: str
    fid_layer: str
    isc_layer: str
    prc_layer: str
    trained_on: str = "not stated"
    embedded: bool = False


# Each is a class of torch-fidelity's; inception_spatial and dinov2 serve metrics of their own and have no logits worth a score.
EXTRACTORS = {
    **{
        name: ExtractorSpec(f"{name}-cnn", "64", "logits", "64", data.shown, embedded=True)
        for name, data in EMBEDDED.items()
    },
    "inception": ExtractorSpec("inception-v3-compat", "2048", "logits_unbiased", "2048", "ImageNet-1k's photographs"),
    "dinov2": ExtractorSpec("timm-dinov2-vit-l-14", "1024", "1024", "1024", "LVD-142M, photographs"),
    "inception_spatial": ExtractorSpec("inception-v3-spatial", "2023", "2023", "2023", "ImageNet-1k's photographs"),
    "timm": ExtractorSpec(
        "timm", "pooled", "pooled", "pooled", "what timm states of these weights"
    ),  # any of its models
}
TIMM_NAME = re.compile(r"timm:([^@=\s]+)(?:@([1-9]\d*))?")


class MetricSpec(NamedTuple):
    """A metric and what it cannot do without.

    Attributes:
        measure: takes ``(generated, reference)`` and returns ``{name: value}``.
        reference_images: it looks at the reference's single images or features, of which an ``.npz`` holds the moments only.
        labels: it looks at the labels that the generated images were asked for.
        extractors: those it makes sense with; empty: any.
        weights: file in this package's folder with weights of its own, by the extractor's name; its hash belongs to a result's protocol.
        on_request: it is computed only where it is named, since it makes a pass of its own over the images.
    """

    measure: Callable[..., dict[str, float]]
    reference_images: bool = False
    labels: bool = False
    extractors: tuple[str, ...] = ()
    weights: str = ""
    on_request: bool = False


METRICS = {
    "fid": MetricSpec(fid),
    "inception_score": MetricSpec(inception_score, extractors=(*EMBEDDED, "inception")),
    "precision_recall": MetricSpec(precision_recall, reference_images=True),
    "recognised": MetricSpec(
        recognised,
        labels=True,
        extractors=tuple(EMBEDDED),
        weights="weights/{extractor}_judge.safetensors",
    ),
    "sfid": MetricSpec(sfid, extractors=("inception",), on_request=True),
    "fd_dinov2": MetricSpec(fd_dinov2, reference_images=True, on_request=True),
}


def foreign_images(extractor: str, source: str, unknown: str = "") -> str:
    """What to say where an embedded data set's extractor meets images of another source (as ``data.source``; empty: not known, of the files
    ``unknown``); else empty."""
    spec = EXTRACTORS[split_name(extractor).kind]
    if not spec.embedded or source == extractor:
        return ""
    little = (
        f"if {unknown} does not hold such images, metrics by it mean little"
        if unknown
        else "metrics of other images by it mean little"
    )
    return (
        f"the extractor '{extractor}' was trained on {spec.trained_on} at 32 x 32: {little}; "
        f"write evaluate.extractor={source if source in EMBEDDED else 'inception'}"
    )


class ExtractorName(NamedTuple):
    """A name in parts: of :data:`EXTRACTORS`, and of ``timm:<model>@<pixels>`` timm's model and the pixels on a side, 0 for its own."""

    kind: str
    model: str = ""
    size: int = 0


def split_name(name: str) -> ExtractorName:
    """The parts of an extractor's name; a ``ValueError`` with the known names where there is no such extractor."""
    if match := TIMM_NAME.fullmatch(name):
        model, _, behind = match[1].partition(":")
        if behind:
            raise ValueError(
                f"there is no feature extractor {name!r}; a weight file stands behind a =: timm:{model}={behind}"
            )
        return ExtractorName("timm", match[1], int(match[2] or 0))
    if name not in EXTRACTORS or name == "timm":
        known = [f"{known}:<model>" if known == "timm" else known for known in EXTRACTORS]
        raise ValueError(f"there is no feature extractor {name!r}; choose one of: {', '.join(known)}")
    return ExtractorName(name)


def check_extractor(name: str) -> None:
    """A ``ValueError`` unless ``name`` is an extractor's, as :func:`split_name` takes it."""
    split_name(name)


def choose_metrics(
    names: Sequence[str] | None, extractor: str, *, reference_images: bool, labels: bool
) -> tuple[str, ...]:
    """The metrics to compute: those named, or where none is named every one that applies.

    Args:
        names: of :data:`METRICS`.
        extractor: its name, as :func:`split_name` takes it.
        reference_images: whether the reference's images are at hand, and not their statistics only.
        labels: whether the labels of the generated images are known.

    Raises:
        ValueError: an unknown extractor or metric, or a named metric that does not apply.
    """
    kind = split_name(extractor).kind
    for name in names or ():
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
            raise ValueError(
                f"there is no metric {name!r}; did you mean {nearest[0]!r}? The metrics are: {', '.join(METRICS)}"
            )
        if obstacle := _obstacle(METRICS[name], kind, reference_images, labels):
            raise ValueError(f"the metric {name!r} {obstacle}")
    return tuple(
        names
        or (
            name
            for name, spec in METRICS.items()
            if not spec.on_request and not _obstacle(spec, kind, reference_images, labels)
        )
    )


def _obstacle(spec: MetricSpec, extractor: str, reference_images: bool, labels: bool) -> str:
    if spec.extractors and extractor not in spec.extractors:
        return f"goes with the extractor {' or '.join(spec.extractors)}, not with {extractor!r}"
    if spec.reference_images and not reference_images:
        return "compares single images: give the images of the reference, not their statistics"
    if spec.labels and not labels:
        return "needs the labels of the generated images"
    return ""
