"""What becomes of every mode that an image file can have."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowprior.data.image_reader import TURNS, read_by_earlier_versions, read_image, read_size
from flowprior.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 5), dtype=np.uint8)


def read(file: Path) -> np.ndarray:
    image = read_image(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(folder: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def gray3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def tiff(file: Path, values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> Path:
    """A little-endian, uncompressed TIFF of one gray channel, written by hand: Pillow saves neither 12 bits nor white as zero."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(height, -1, 2).astype(int)
        packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
        339: sample_format,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    file.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return file


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_gray_is_its_eight_bit_twin(tmp_path, name):
    file = saved(tmp_path, Image.fromarray(GRAY.astype(np.uint16) * 257), name)
    assert Image.open(file).mode.startswith("I")
    assert np.array_equal(read(file), gray3(GRAY))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_gray_counts_by_its_high_byte_as_sixteen_bit_colours_do(tmp_path, name):
    values = RNG.integers(0, 1 << 16, (6, 5), dtype=np.uint16)
    assert np.array_equal(read(saved(tmp_path, Image.fromarray(values), name)), gray3((values >> 8).astype(np.uint8)))


def test_tiffs_of_twelve_bits_of_white_as_zero_and_of_big_endian_keep_their_range(tmp_path):
    twelve = RNG.integers(0, 1 << 12, (4, 6), dtype=np.uint16)
    sixteen = RNG.integers(0, 1 << 16, (4, 6), dtype=np.uint16)
    assert np.array_equal(read(tiff(tmp_path / "a.tif", twelve, 12)), gray3((twelve >> 4).astype(np.uint8)))
    white_first = read(tiff(tmp_path / "b.tif", sixteen, 16, photometric=0))
    assert np.array_equal(white_first, gray3(255 - (sixteen >> 8).astype(np.uint8)))
    eight = read(tiff(tmp_path / "c.tif", (sixteen >> 8).astype(np.uint8), 8, photometric=0))
    assert np.array_equal(white_first, eight)
    big = saved(tmp_path, Image.frombytes("I;16B", (6, 4), sixteen.astype(">u2").tobytes()), "d.tif")
    assert np.array_equal(read(big), gray3((sixteen >> 8).astype(np.uint8)))


@pytest.mark.parametrize(
    "values, bits, sample_format, words",
    [
        (RNG.standard_normal((4, 6)).astype(np.float32), 32, 3, "floating-point numbers"),
        (RNG.integers(0, 1 << 30, (4, 6)).astype(np.int32), 32, 2, "32-bit integers"),
        (RNG.integers(0, 1 << 30, (4, 6)).astype(np.uint32), 32, 1, "32-bit integers"),
        (RNG.integers(-99, 99, (4, 6)).astype(np.int16), 16, 2, "32-bit integers"),
        (RNG.integers(-99, 99, (4, 6)).astype(np.int8), 8, 2, "signed numbers"),
    ],
)
def test_values_without_a_range_of_their_own_are_refused_by_name(tmp_path, values, bits, sample_format, words):
    file = tiff(tmp_path / "a.tif", values, bits, sample_format=sample_format)
    with pytest.raises(UserError, match=f"{file} holds {words}.*save it with 8 or 16 bits"):
        read_image(file)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize(
    "mode, name", [("RGBA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tif"), ("LA", "a.png"), ("LA", "a.tif")]
)
def test_transparent_images_lie_on_white(tmp_path, mode, name):
    colour = RGB if mode == "RGBA" else gray3(GRAY)
    bands = [*colour.transpose(2, 0, 1), ALPHA] if mode == "RGBA" else [GRAY, ALPHA]
    image = Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    shown = read(saved(tmp_path, image, name, **options)).astype(float)
    assert np.abs(shown - on_white(colour, ALPHA)).max() <= 1


def test_opaque_images_with_an_alpha_channel_are_their_colours_bit_by_bit(tmp_path):
    whole = np.dstack([RGB, np.full(GRAY.shape, 255, np.uint8)])
    assert np.array_equal(read(saved(tmp_path, Image.fromarray(whole), "a.png")), RGB)


def test_a_transparent_colour_of_a_palette_of_gray_or_of_rgb_is_white(tmp_path):
    palette = Image.fromarray(GRAY % 4).convert("L")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90], [100, 110, 120]])
    assert np.array_equal(read(saved(tmp_path, palette, "p.png", transparency=1)), colours[GRAY % 4])
    half = read(saved(tmp_path, palette, "q.png", transparency=bytes([255, 0, 255, 255])))
    assert np.array_equal(half, colours[GRAY % 4])
    gray = Image.fromarray(GRAY % 4)
    assert np.array_equal(
        read(saved(tmp_path, gray, "l.png", transparency=1)), gray3(np.where(GRAY % 4 == 1, 255, GRAY % 4))
    )
    key = tuple(int(v) for v in RGB[2, 3])
    expected = np.where((RGB == key).all(-1, keepdims=True), 255, RGB)
    assert np.array_equal(read(saved(tmp_path, Image.fromarray(RGB), "rgb.png", transparency=key)), expected)


def test_palettes_bits_cmyk_and_ycbcr_are_what_pillow_shows(tmp_path):
    picture = Image.fromarray(RGB)
    files = {
        "p.png": picture.quantize(8), "b.png": Image.fromarray(GRAY).convert("1"), "b.tif": Image.fromarray(GRAY).convert("1"),
        "c.tif": picture.convert("CMYK"), "c.jpg": picture.convert("CMYK"), "y.tif": picture.convert("YCbCr"), "p.bmp": picture.quantize(8),
        "l.webp": Image.fromarray(GRAY), "l.bmp": Image.fromarray(GRAY), "rgb.bmp": picture,
    }  # fmt: skip
    for name, image in files.items():
        file = saved(tmp_path, image, name)
        try:
            shown = np.asarray(Image.open(file).convert("RGB"))
        except OSError:  # Pillow 10.0 cannot read the YCbCr TIFF that it writes
            with pytest.raises(UserError, match="cannot be read"):
                read(file)
            continue
        assert np.array_equal(read(file), shown), name
    assert np.unique(read(tmp_path / "b.png")).tolist() == [0, 255]


def test_lab_colours_become_srgb(tmp_path):
    # CIE L*a*b* (D50), rounded, of sRGB red, green, blue, white, mid gray and black; TIFF stores a and b as signed bytes.
    lab = np.array([[54, 81, 70], [88, -79, 81], [30, 68, -112], [100, 0, 0], [53.6, 0, 0], [0, 0, 0]], dtype=float)
    rows = np.stack([lab[:, 0] * 2.55, lab[:, 1] % 256, lab[:, 2] % 256], -1).round().astype(np.uint8)
    file = saved(tmp_path, Image.frombytes("LAB", (6, 1), rows.tobytes()), "lab.tif")
    assert Image.open(file).mode == "LAB"
    wanted = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128], [0, 0, 0]]
    error = np.abs(read(file)[0].astype(int) - wanted).max(1)
    assert error[:3].max() <= 26 and error[3:].max() <= 2  # rounding weighs on the corners of the gamut


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_images_are_upright_whatever_their_exif_orientation(tmp_path, name, orientation):
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :8] = (255, 0, 0)
    picture[8:, 16:] = (0, 0, 255)
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(
        orientation, orientation
    )  # how the camera held it: the inverse of what the reader does
    stored = Image.fromarray(picture) if orientation == 1 else Image.fromarray(picture).transpose(TURNS[undo])
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 95, "subsampling": 0} if name == "a.jpg" else {}
    file = saved(tmp_path, stored, name, exif=exif, **options)
    shown = read(file).astype(int)
    assert shown.shape == picture.shape and np.abs(shown - picture).max() <= (40 if name == "a.jpg" else 0)
    assert read_size(file) == (16, 24)
    assert read_by_earlier_versions(file) == (orientation == 1 or name == "a.tif")  # which Pillow turns itself


def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path):
    file = saved(tmp_path, Image.fromarray(RGB), "a.png", exif=b"Exif\0\0no tiff at all")
    assert np.array_equal(read(file), RGB)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_files_of_several_frames_are_refused_with_their_number(tmp_path, name):
    frames = [Image.fromarray(np.roll(RGB, n, 0)) for n in range(3)]
    file = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"{file} holds 3 frames"):
        read_image(file)


def test_of_a_photograph_with_a_preview_behind_it_the_photograph_is_read(tmp_path):
    photograph = Image.fromarray(RGB).resize((40, 30))
    file = saved(tmp_path, photograph, "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    assert Image.open(file).n_frames == 2
    assert np.array_equal(read(file), np.asarray(Image.open(file).convert("RGB"))) and read_by_earlier_versions(file)


def test_a_file_of_another_kind_under_an_images_name_is_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "name, image, same",
    [
        ("a.png", Image.fromarray(RGB), True),
        ("a.tif", Image.fromarray(RGB), True),
        ("a.png", Image.fromarray(GRAY), True),
        ("a.png", Image.fromarray(np.dstack([RGB, np.full(GRAY.shape, 255, np.uint8)])), True),
        ("a.png", Image.fromarray(np.dstack([RGB, ALPHA])), False),
        ("a.png", Image.fromarray(GRAY.astype(np.uint16) * 257), False),
        ("a.tif", Image.fromarray(GRAY.astype(np.float32)), False),
    ],
)
def test_it_is_known_which_images_earlier_versions_showed_otherwise(tmp_path, name, image, same):
    assert read_by_earlier_versions(saved(tmp_path, image, name)) is same
