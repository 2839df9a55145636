"""Reference statistics for FID: mean and covariance of an extractor's features over a set of real images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torchvision.transforms.functional as TF
from PIL import Image, UnidentifiedImageError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from flowprior.data.digits import digit_images  # noqa: E402
from flowprior.data.images import EXTENSIONS, centre_crop  # noqa: E402
from flowprior.errors import UserError, entry_point  # noqa: E402
from flowprior.metrics.extractors import EXTRACTORS, stream_features  # noqa: E402
from flowprior.metrics.statistics import Statistics, StreamingMoments  # noqa: E402

EPILOG = """examples:
  python fid_stats/compute.py digits                  rewrites fid_stats/digits.npz
  python fid_stats/compute.py /data/imagenet/val --extractor inception --size 256 --out val256.npz
"""


def list_images(folder: Path) -> list[Path]:
    """Every image file below ``folder``, at any depth, in the order of its path."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a folder of images, or the word digits")
    files = sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in EXTENSIONS
    )
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} image files ({', '.join(sorted(EXTENSIONS))}); statistics need at least two")
    return files


def load_image(path: Path, size: int) -> torch.Tensor:
    """The central square, uint8 ``(3, size, size)``, cropped as the evaluation of the models crops."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from None
    return TF.pil_to_tensor(centre_crop(picture, size))  # (3, size, size)


def folder_batches(files: list[Path], size: int, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Batches uint8 ``(B, 3, size, size)``, read by threads, so that a bad file's error arrives here as it was raised."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), batch_size):
            yield torch.stack(list(pool.map(lambda path: load_image(path, size), files[start : start + batch_size])))


def compute(batches: Iterator[torch.Tensor], extractor: str, device: str, weights_path: Path | None, progress: bool) -> Statistics:
    """Moments of the extractor's FID features over all batches, with no feature kept."""
    moments: StreamingMoments | None = None
    for features, _ in stream_features(batches, extractor, device=device, weights_path=weights_path, progress=progress):
        # The (d, d) sum stays on the CPU where the device has no float64.
        home = features.device if features.device.type == "cuda" else "cpu"
        moments = moments or StreamingMoments(features.shape[1], home)
        moments.update(features)
    if moments is None:
        raise UserError("there are no images to compute statistics from")
    return moments.statistics(extractor)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python fid_stats/compute.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="digits|FOLDER", help="the embedded digits, or a folder searched for images at any depth")
    parser.add_argument("--extractor", choices=sorted(EXTRACTORS), help="default: digits for the digits, inception for a folder")
    parser.add_argument("--size", type=int, help="side of the central square in pixels (default: 32 for digits, 256 for a folder)")
    parser.add_argument("--out", type=Path, help="file to write (default for digits: fid_stats/digits.npz; needed for a folder)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="threads that read images (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--weights-path", type=Path, help="file with the extractor's weights, instead of the usual place")
    options = parser.parse_args(arguments)
    embedded = options.source == "digits"
    options.extractor = options.extractor or ("digits" if embedded else "inception")
    options.size = (32 if embedded else 256) if options.size is None else options.size
    options.out = options.out or (HERE / "digits.npz" if embedded else None)
    if options.out is None:
        raise UserError("name the file to write with --out, such as --out stats.npz")
    if options.size < 1 or options.batch_size < 1 or options.workers < 1:
        raise UserError("--size, --batch-size and --workers must be at least 1")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from None
    return options


@entry_point
def main() -> None:
    options = parse()
    if options.source == "digits":
        batches = iter(digit_images(options.size)[0].split(options.batch_size))
    else:
        batches = folder_batches(list_images(Path(options.source)), options.size, options.batch_size, options.workers)
    statistics = compute(batches, options.extractor, options.device, options.weights_path, progress=sys.stderr.isatty())
    statistics.save(options.out)
    print(f"{options.out}: {statistics.count} images, {len(statistics.mu)} dimensions, extractor {options.extractor}")


if __name__ == "__main__":
    main()
