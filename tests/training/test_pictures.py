"""Folders of images: grey and colour, of one size or brought to one, and the files that are not what they seem."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from service.codecs import decode_image
from service.errors import DataError
from service.schemas import INSTANCES
from service.training.arrays import read_pictures
from service.training.data import read_dataset
from service.words import JPEG, PNG


def fill(folder: Path, count: int, *, size: tuple[int, int] = (12, 9), mode: str = "L", suffix: str = "png") -> Path:
    """Images of noise; ``size`` is height and width."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("odd" if number % 2 else "even") / f"{number:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


def test_subfolders_and_order(tmp_path: Path) -> None:
    """All files of all subfolders, in the order of their names; the pixels are those of the files."""
    folder = fill(tmp_path / "shots", 12)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("nor this")
    dataset = read_dataset(str(folder))
    assert (dataset.schema.kind, dataset.schema.row_shape, dataset.schema.value_range) == ("image", (12, 9), (0, 255))
    assert (dataset.source, len(dataset)) == ("shots", 12)
    np.testing.assert_array_equal(dataset.rows["instances"][0], np.asarray(Image.open(folder / "even/000.png")))
    np.testing.assert_array_equal(dataset.rows["instances"][6], np.asarray(Image.open(folder / "odd/001.png")))


def test_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    """Grey images among colour ones become grey in three channels."""
    fill(tmp_path, 3, mode="RGB")
    grey = np.full((12, 9), 77, np.uint8)
    Image.fromarray(grey).save(tmp_path / "zz.png")
    pixels, schema, _ = read_pictures(tmp_path)
    assert schema.row_shape == (12, 9, 3)
    assert (pixels[-1] == 77).all()


def test_jpeg_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    """What is not PNG of 8 bits comes down to 0 to 255 as well."""
    fill(tmp_path, 2, suffix="JPG")
    Image.fromarray(np.full((12, 9), 65_535, np.uint16)).save(tmp_path / "y.png")
    Image.new("LA", (9, 12), (120, 0)).save(tmp_path / "z.png")
    pixels, schema, _ = read_pictures(tmp_path)
    assert schema.row_shape == (12, 9)
    assert (pixels[-2] == 255).all()
    assert (pixels[-1] == 120).all()


def test_sizes_must_agree_or_be_brought_to_one(tmp_path: Path) -> None:
    """The sentence names the file that differs and the option that helps."""
    fill(tmp_path, 2)
    Image.new("L", (20, 30)).save(tmp_path / "zz.png")
    with pytest.raises(DataError, match=r"zz\.png is 30 x 20 .* even/000\.png is 12 x 9; --resize 12x9"):
        read_pictures(tmp_path)
    pixels, _, _ = read_pictures(tmp_path, resize=(16, 8))
    assert pixels.shape == (3, 16, 8)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_000, 12_000, 40_000])
def test_decompression_bombs_are_not_decoded(tmp_path: Path, side: int) -> None:
    """A small file that claims many pixels is refused by its head, whatever Pillow's own limit says."""
    fill(tmp_path, 1)
    (tmp_path / "bomb.png").write_bytes(png_that_claims(side, side))
    with pytest.raises(DataError, match=r"bomb\.png: An image may have at most 16777216 pixels"):
        read_pictures(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\nnothing"])
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes) -> None:
    """Whatever the name promises, the content is looked at."""
    fill(tmp_path, 1)
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png is not an image that can be read"):
        read_pictures(tmp_path)


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    """Its head is fine, its pixels are not all there."""
    fill(tmp_path, 2, size=(64, 64))
    whole = (tmp_path / "odd/001.png").read_bytes()
    (tmp_path / "odd/001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"odd/001\.png is not an image that can be read, or it is damaged"):
        read_pictures(tmp_path)


def test_a_folder_without_images(tmp_path: Path) -> None:
    """An empty folder, or one of other files, is said to be that."""
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="holds no images"):
        read_dataset(str(tmp_path))


def test_arrays_are_resized_too(tmp_path: Path) -> None:
    """The option holds for arrays of 8 bits, and is refused where there are no pixels."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    assert read_dataset(str(tmp_path / "images.npy"), resize=(4, 4)).schema.row_shape == (4, 4, 3)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(20, 4)))
    with pytest.raises(DataError, match="Only images of 8 bits"):
        read_dataset(str(tmp_path / "rows.npy"), resize=(4, 4))


def test_a_file_is_the_same_picture_in_training_and_in_a_request(tmp_path: Path) -> None:
    """Levels of 16 bits keep their fractions in both, and both turn an image upright."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 4096, (12, 9), dtype=np.uint16)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(random.integers(0, 256, (9, 12), dtype=np.uint8)).save(tmp_path / "b.jpg", exif=exif)
    Image.fromarray(random.integers(0, 256, (12, 9), dtype=np.uint8)).save(tmp_path / "c.png")
    pixels, schema, _ = read_pictures(tmp_path)
    assert schema.row_shape == (12, 9)
    assert len(np.unique(pixels[0])) > 80
    for row, (name, media_type) in enumerate([("a.png", PNG), ("b.jpg", JPEG), ("c.png", PNG)]):
        sent = decode_image((tmp_path / name).read_bytes(), schema, media_type=media_type)[INSTANCES]
        np.testing.assert_array_equal(sent[0], pixels[row])


def test_images_of_sixteen_bits_are_resized(tmp_path: Path) -> None:
    """Their fractions stay."""
    Image.fromarray(np.full((12, 9), 1000, np.uint16)).save(tmp_path / "a.png")
    pixels, _, _ = read_pictures(tmp_path, resize=(6, 4))
    np.testing.assert_allclose(pixels, 1000 / 257, rtol=1e-5)


def test_other_formats_are_read_or_named(tmp_path: Path) -> None:
    """Whatever Pillow reads without loss of the first frame; a note counts the rest."""
    grey = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    for ending in ("png", "bmp", "tif", "pgm"):
        Image.fromarray(grey).save(tmp_path / f"one.{ending}")
    for name in ("b.heic", "a.heic", "notes.txt", "README"):
        (tmp_path / name).write_text("not an image")
    pixels, schema, notes = read_pictures(tmp_path)
    assert schema.row_shape == (12, 9)
    assert (pixels == grey).all()
    assert len(pixels) == 4
    (note,) = notes
    assert "4 files of other kinds were left out (2 .heic, 1 no ending, 1 .txt), such as README, a.heic," in note


def test_a_picture_is_grey_by_its_pixels(tmp_path: Path) -> None:
    """Whether its format has a kind for grey or not; one pixel of a colour makes a picture colour."""
    grey = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    colour = np.stack([grey] * 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "a.gif")
    Image.fromarray(grey).convert("P").save(tmp_path / "b.png")
    Image.fromarray(colour).save(tmp_path / "c.webp", lossless=True)
    Image.fromarray(np.full((12, 9, 3), 77, np.uint8)).save(tmp_path / "d.jpg")
    pixels, schema, _ = read_pictures(tmp_path)
    assert schema.row_shape == (12, 9)
    assert (pixels[:3] == grey).all()
    assert (pixels[3] == 77).all()
    row = decode_image((tmp_path / "b.png").read_bytes(), schema, media_type=PNG)[INSTANCES]
    assert (row == grey).all()
    colour[0, 0] = (10, 10, 11)
    Image.fromarray(colour).save(tmp_path / "e.png")
    assert read_pictures(tmp_path)[1].row_shape == (12, 9, 3)


def test_the_notes_reach_the_data_set(tmp_path: Path) -> None:
    """And from there the summary, the model card and the console."""
    fill(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("not an image")
    (note,) = read_dataset(str(tmp_path)).notes
    assert "1 file of other kinds was left out (1 .txt), such as notes.txt." in note
