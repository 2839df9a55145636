"""Packages of npm's emoji-datasource as a folder of images: one sub-folder per category, and a file that names the licences.

python scripts/unpack_emoji.py DIR emoji-datasource-twitter-16.0.0.tgz emoji-datasource-google-16.0.0.tgz

Of each package the base images, img/<vendor>/64/*.png, that emoji.json lists; skin tones are left out. Nothing else is unpacked.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flowprior.data.image_reader import read_image  # noqa: E402
from flowprior.errors import UserError, entry_point  # noqa: E402
from flowprior.notes import note  # noqa: E402

SIDE = 64
SKIN_TONES = "Component"
LICENCES = {
    "twitter": "Twemoji's graphics, Copyright Twitter, Inc and other contributors: CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "google": "Noto Emoji, Copyright Google LLC: Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0",
}


@entry_point
def main() -> None:
    words = sys.argv[1:]
    if len(words) < 2 or words[0].startswith("-"):
        raise UserError("name a folder and the packages: python scripts/unpack_emoji.py DIR PACKAGE.tgz ...")
    folder, packages = Path(words[0]), list(map(Path, words[1:]))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and not empty: name another folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    lines, counts = [], Counter()
    for package in packages:
        vendor, made = unpack(package, temporary)
        if any(line.startswith(f"{vendor}_") for line in lines):
            raise UserError(f"{package} is a second package of {vendor}'s images: name one of each vendor")
        counts += made
        lines.append(f"{vendor}_*.png: {LICENCES[vendor]} ({package.name} of npm; laid on white)")
    (temporary / "LICENSES").write_text("\n".join(lines) + "\n")
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)
    note("transparent background is laid on white")
    print(f"{counts.total()} images: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))


def unpack(package: Path, folder: Path) -> tuple[str, Counter[str]]:
    """Write a package's images below ``folder``; the vendor, and how many there are by category.

    Raises:
        UserError: the file is no package of emoji-datasource, or an image that it lists is missing or of another size.
    """
    counts: Counter[str] = Counter()
    try:
        with tarfile.open(package) as archive:
            vendor = vendor_of(archive, package)
            for category, name in base_images(archive, vendor):
                stored = read(archive, f"package/img/{vendor}/{SIDE}/{name}", package)
                image = read_image(io.BytesIO(stored), f"{name} in {package}")  # transparency is laid on white
                if image.size != (SIDE, SIDE):
                    raise UserError(f"{name} in {package} is {image.size[0]} x {image.size[1]}, not {SIDE} x {SIDE}")
                place = folder / category
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{vendor}_{name}")
                counts[category] += 1
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{package} is no package of emoji-datasource ({error}): fetch it again") from error
    return vendor, counts


def vendor_of(archive: tarfile.TarFile, package: Path) -> str:
    name = str(json.loads(read(archive, "package/package.json", package)).get("name"))
    vendor = name.removeprefix("emoji-datasource-")
    if vendor not in LICENCES:
        raise UserError(f"{package} is '{name}', whose images' licence is not known here: take {' or '.join(LICENCES)}")
    return vendor


def base_images(archive: tarfile.TarFile, vendor: str) -> Iterator[tuple[str, str]]:
    """``(category, file name)`` of every emoji that the vendor has, in the package's order; variations of one are not among them."""
    for emoji in json.loads(archive.extractfile("package/emoji.json").read()):  # type: ignore[union-attr]
        if emoji.get(f"has_img_{vendor}") and emoji["category"] != SKIN_TONES:
            yield re.sub(r"\W+", "_", emoji["category"].lower()), Path(emoji["image"]).name


def read(archive: tarfile.TarFile, name: str, package: Path) -> bytes:
    """A file of the archive; a :class:`UserError` where it is not there."""
    try:
        return archive.extractfile(name).read()  # type: ignore[union-attr]
    except KeyError:
        raise UserError(f"{package} holds no {name}: fetch it again") from None


if __name__ == "__main__":
    main()
