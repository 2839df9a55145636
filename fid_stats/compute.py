"""Reference statistics for FID: mean and covariance of an extractor's features over a set of real images."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from flowprior.data.embedded import EMBEDDED  # noqa: E402
from flowprior.data.image_sizes import stored_sizes  # noqa: E402
from flowprior.data.images import ImageConfig, StoredImages, open_images  # noqa: E402
from flowprior.errors import UserError, entry_point  # noqa: E402
from flowprior.metrics import EXTRACTORS, Extractor, ImageSet  # noqa: E402
from flowprior.metrics.extractor_options import split_weights  # noqa: E402
from flowprior.metrics.registry import foreign_images  # noqa: E402
from flowprior.notes import note  # noqa: E402
from flowprior.run.config import build_config  # noqa: E402

# What messages call the options of a stage.
OPTIONS = {
    "data.image_column=": "--image-column ",
    "data.label_column=": "--label-column ",
    "data.skip_bad=true": "--skip-bad",
    "weights_path, or evaluate.weights beside evaluate.extractor=dinov2": "--weights-path",
    "weights_path, or evaluate.weights": "--weights-path",
    "evaluate.timm.weights": "--weights-path",
}
EPILOG = """examples:
  python fid_stats/compute.py digits                  rewrites fid_stats/digits.npz
  python fid_stats/compute.py /data/imagenet/val --extractor inception --size 256 --out val256.npz
  python fid_stats/compute.py /data/cifar10 --cifar10 --out cifar10.npz
  python fid_stats/compute.py /data/imagenet/val --extractor timm:vit_small_patch14_dinov2.lvd142m=dinov2.pth --out val256.npz
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python fid_stats/compute.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="digits|mnist|IMAGES",
        help="an embedded data set, or where images lie: a folder, tar shards, a zip, or whatever else data.path takes",
    )
    parser.add_argument(
        "--extractor",
        metavar="NAME",
        help=f"{', '.join(name for name in EXTRACTORS if name != 'timm')}, timm:<model> or timm:<model>@<pixels>; behind a = its weight "
        "file, or package:<a Python package that holds it> (default: an embedded data set's own, inception for images)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="side of the central square in pixels (default: 32 for embedded images and CIFAR-10, 256 for others)",
    )
    parser.add_argument(
        "--cifar10",
        action="store_true",
        help="IMAGES is the folder that torchvision's loader keeps CIFAR-10 in, as data.path is for data.source=cifar10",
    )
    parser.add_argument(
        "--subset",
        choices=("train", "val", "all"),
        help="of CIFAR-10: its 50,000 training images, which FIDs are usually against, its 10,000 test images, or both (default: train)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default for digits: fid_stats/digits.npz, for mnist likewise; needed for others)",
    )
    parser.add_argument("--image-column", default="", help="as data.image_column of a stage")
    parser.add_argument("--label-column", default="", help="as data.label_column of a stage")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that cannot be read, as data.skip_bad of a stage"
    )
    parser.add_argument("--world", type=int, default=4, help="threads that read images (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument(
        "--weights-path", type=Path, help="file with the extractor's weights, instead of the usual place"
    )
    options = parser.parse_args(arguments)
    embedded = options.source in EMBEDDED
    named, weights = split_weights(options.extractor or (options.source if embedded else "inception"))
    if weights and options.weights_path:
        raise UserError("--extractor and --weights-path both name a weight file: leave out one of them")
    options.extractor, options.weights_path = named, weights or options.weights_path
    if embedded and options.cifar10:
        raise UserError(f"--cifar10 takes the folder of CIFAR-10 in place of {options.source}")
    if options.subset and not options.cifar10:
        raise UserError("--subset chooses among CIFAR-10's images: leave it out, or write --cifar10")
    options.subset = options.subset or "train"
    options.size = (32 if embedded or options.cifar10 else 256) if options.size is None else options.size
    options.out = options.out or (HERE / f"{options.source}.npz" if embedded else None)
    if options.out is None:
        raise UserError("name the file to write with --out, such as --out stats.npz")
    if options.world < 1:
        raise UserError(f"--world is at least 1, not {options.world}")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from None
    return options


@entry_point
def main() -> None:
    try:
        compute(parse())
    except UserError as error:
        said = str(error)
        for theirs, ours in OPTIONS.items():
            said = said.replace(theirs, ours)
        raise UserError(said) from error


def compute(options: argparse.Namespace) -> None:
    """Write the statistics that the command line asks for."""
    columns = {name: getattr(options, name) for name in ("image_column", "label_column", "skip_bad")}
    config = build_config(ImageConfig, {"size": options.size, **columns}, "--size")
    embedded = options.source in EMBEDDED
    if embedded:
        config = replace(config, source=options.source)
    elif options.cifar10:
        config = replace(config, source="cifar10", path=options.source, subset=options.subset)
    else:
        config = replace(config, source="files", path=options.source)
    images = open_images(config)
    if isinstance(images, StoredImages):
        small = sum(n for size, n in stored_sizes(images).items() if min(size) < options.size)
        if small:
            note(f"{small} of {len(images)} images are smaller than {options.size} and are enlarged")
    extractor = Extractor(options.extractor, device=options.device, weights_path=options.weights_path)
    statistics = ImageSet.of_source(images, extractor, threads=options.world, progress=sys.stderr.isatty()).statistics()
    labelled = images.num_classes > 1
    counts = np.bincount(np.asarray(images.labels), minlength=images.num_classes)
    held = not isinstance(images, StoredImages)  # whose classes have their usual numbers, and need no names
    statistics = replace(
        statistics,
        crop=f"centre {options.size}",
        class_counts=tuple(counts.tolist()) if labelled else None,
        class_names=tuple(images.class_names) if labelled and not held else None,
        weights=extractor.fingerprint,
    )
    statistics.save(options.out)
    if told := foreign_images(options.extractor, options.source):
        note(f"{told.partition('; write')[0]}")
    print(f"{options.out}: {statistics.count} images, {len(statistics.mu)} dimensions, extractor {options.extractor}")


if __name__ == "__main__":
    main()
