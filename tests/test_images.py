"""Photo input by property: whatever the file format, colour mode or container, the picture that arrives is the same."""

import contextlib
import io
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from modeling.errors import ImageError, PictaleError
from modeling.images import MAX_ASPECT, MAX_JPEG_PIXELS, MAX_PIXELS, MAX_SIDE, MIN_SIDE, load_image

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth picture without any symmetry: every rotation and mirroring of it is far from the original."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    red, green = 255 * x / (WIDTH - 1), 255 * y / (HEIGHT - 1)
    blue = 255 * np.exp(-((x - 20) ** 2 + (y - 15) ** 2) / 200)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference a channel, in levels of 255."""
    assert first.size == second.size
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def png_of_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# ---------------------------------------------------------------------------------------------------------------------
# The same picture through every door


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("WEBP", {"quality": 95}, 4),
        ("GIF", {}, 12),
    ],
)
def test_formats_agree(photo, format, options, tolerance):
    assert difference(load_image(encoded(photo, format, **options)), photo) <= tolerance


def test_all_sources_agree(photo, tmp_path):
    path = tmp_path / "a photo.png"
    photo.save(path)
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = [photo, path, str(path), content, bytearray(content), io.BytesIO(content), file, np.asarray(photo)]
        sources.append(Image.open(path))
        for source in sources:
            result = load_image(source)
            assert result.mode == "RGB"
            assert difference(result, photo) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_colour_modes_look_like_the_original(photo, mode):
    assert difference(load_image(photo.convert(mode)), photo) < (14 if mode == "P" else 3)


@pytest.mark.parametrize("mode", ["L", "LA", "I", "F", "I;16"])
def test_grey_modes_look_like_the_grey_original(photo, mode):
    grey = photo.convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    assert image.mode == mode
    assert difference(load_image(image), grey) < 1


def test_one_bit(photo):
    bitmap = photo.convert("1")
    assert difference(load_image(bitmap), bitmap) == 0


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_files(photo, format):
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert difference(load_image(encoded(deep, format)), grey) < 1


def test_dark_sixteen_bit_file_stays_dark(photo):
    dark = Image.fromarray(np.full((64, 64), 600, dtype=np.uint16))
    assert np.asarray(load_image(encoded(dark, "PNG"))).max() == round(600 / 257)


def test_wide_integers_and_floats_are_scaled_to_their_range():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, -1).repeat(64, axis=0)
    expected = Image.fromarray((ramp * 255 + 0.5).astype(np.uint8))
    for top in (1.0, 255.0, 65535.0, 1e6):
        assert difference(load_image(Image.fromarray(ramp * np.float32(top))), expected) < 1
    for top in (65535, 10**6):
        assert difference(load_image(Image.fromarray((ramp * top).astype(np.int32))), expected) < 1


def test_cmyk_jpeg(photo):
    assert difference(load_image(encoded(photo.convert("CMYK"), "JPEG", quality=95)), photo) < 4


def test_transparency_is_laid_on_white(photo):
    alpha = Image.new("L", photo.size, 255)
    alpha.paste(0, (0, 0, WIDTH // 2, HEIGHT))
    see_through = photo.convert("RGB")
    see_through.putalpha(alpha)
    on_white = photo.copy()
    on_white.paste("white", (0, 0, WIDTH // 2, HEIGHT))
    assert difference(load_image(see_through), on_white) == 0
    assert difference(load_image(encoded(see_through, "WEBP", lossless=True)), on_white) == 0
    assert difference(load_image(see_through.convert("LA")), on_white.convert("L")) < 1
    assert difference(load_image(see_through.convert("LA").convert("La")), on_white.convert("L")) < 1


@pytest.mark.parametrize("transparency", [0, bytes([0]) + bytes([255]) * 255])
def test_transparent_palette(transparency):
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 200, 30, 40])
    palette.paste(0, (0, 0, 16, 32))
    data = encoded(palette, "PNG", transparency=transparency)
    result = load_image(data)
    assert result.getpixel((2, 2)) == (255, 255, 255)
    assert result.getpixel((30, 2)) == (200, 30, 40)


def test_transparent_colour_of_an_rgb_png():
    image = Image.new("RGB", (32, 32), (10, 20, 30))
    image.paste((200, 0, 0), (16, 0, 32, 32))
    result = load_image(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert result.getpixel((2, 2)) == (255, 255, 255)
    assert result.getpixel((30, 2)) == (200, 0, 0)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert load_image(data).getpixel((16, 16)) == (255, 0, 0)


def test_pil_animation_gives_the_frame_it_stands_on(photo):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    animation = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    animation.seek(1)
    assert load_image(animation).getpixel((16, 16)) == (0, 255, 0)
    assert animation.tell() == 1


# ---------------------------------------------------------------------------------------------------------------------
# Upright


INVERSE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", INVERSE)
def test_exif_orientation_is_undone(photo, orientation, format):
    """What a camera held sideways stores, comes back as it was seen."""
    method = INVERSE[orientation]
    stored = photo if method is None else photo.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = encoded(stored, format, exif=exif, **options)
    assert difference(load_image(data), photo) < 3
    assert difference(load_image(Image.open(io.BytesIO(data))), photo) < 3
    if orientation != 1:
        assert stored.size != photo.size or difference(stored, photo) > 20


def test_damaged_exif_does_not_cost_the_photo(photo):
    data = encoded(photo, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(load_image(data), photo) < 5


# ---------------------------------------------------------------------------------------------------------------------
# Large photos


def test_large_photos_are_reduced(photo):
    large = photo.resize((3000, 2000), Image.Resampling.BICUBIC)
    for source in (encoded(large, "JPEG"), encoded(large, "PNG", compress_level=1), large, np.asarray(large)):
        result = load_image(source)
        assert max(result.size) == MAX_SIDE
        assert difference(result, photo.resize(result.size, Image.Resampling.BICUBIC)) < 3
    assert large.size == (3000, 2000)


def test_large_jpeg_is_not_unpacked_whole(monkeypatch):
    data = encoded(Image.new("L", (9000, 9000), 90), "JPEG")
    unpacked = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (load(image), unpacked.append(image.size))[0])
    assert load_image(data).size == (MAX_SIDE, MAX_SIDE)
    assert unpacked
    assert max(max(size) for size in unpacked) <= 9000 // 4


def test_jpegs_may_be_larger():
    """What a large phone camera gives passes; what no camera gives does not."""
    assert MAX_PIXELS < 12_000 * 9_000 < MAX_JPEG_PIXELS
    assert load_image(encoded(Image.new("L", (12_000, 9_000), 90), "JPEG")).size == (MAX_SIDE, MAX_SIDE * 3 // 4)
    with pytest.raises(ImageError, match="12000x11000 pixels, more than 120 megapixels"):
        load_image(encoded(Image.new("L", (12_000, 11_000), 90), "JPEG"))


def test_source_is_left_alone(photo):
    image = photo.convert("RGBA")
    before = image.tobytes()
    result = load_image(image)
    result.putpixel((0, 0), (1, 2, 3))
    assert (image.mode, image.tobytes()) == ("RGBA", before)
    plain = photo.copy()
    assert load_image(plain) is not plain


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int64, np.int32, np.float16, np.float32, np.float64, ">u2", np.uint32]
)
def test_array_types_agree(photo, dtype):
    pixels = np.asarray(photo)
    dtype = np.dtype(dtype)
    scale = 257 if dtype.itemsize == 2 and dtype.kind == "u" else 1 / 255 if dtype.kind == "f" else 1
    array = (pixels * np.float64(scale)).round(0 if scale >= 1 else 9).astype(dtype)
    assert difference(load_image(array), photo) < 1
    assert difference(load_image(array[:, :, :1]), Image.fromarray(pixels[:, :, 0])) < 1
    assert difference(load_image(array[:, :, 0]), Image.fromarray(pixels[:, :, 0])) < 1


def test_array_layouts(photo):
    pixels = np.asarray(photo)
    opaque = np.concatenate([pixels, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    assert difference(load_image(opaque), photo) == 0
    opaque[:, :, 3] = 0
    assert difference(load_image(opaque), Image.new("RGB", photo.size, "white")) == 0
    assert difference(load_image(pixels[::-1, ::-1]), photo.transpose(Image.Transpose.ROTATE_180)) == 0
    assert set(np.unique(np.asarray(load_image(pixels[:, :, 0] > 128)))) == {0, 255}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((64, 64, 2), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros(64, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.full((64, 64), np.nan, np.float32),
        np.full((64, 64), np.inf, np.float64),
        np.full((64, 64), 2.0, np.float32),
        np.full((64, 64), -1, np.int64),
        np.full((64, 64), 256, np.int32),
        np.zeros((64, 64), np.complex64),
        np.zeros((64, 64), "U1"),
        np.zeros((64, 64), object),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_that_are_no_photos(array):
    with pytest.raises(ImageError):
        load_image(array)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one sentence, whatever it is


def refusal(source) -> str:
    """The sentence a source is refused with; no warning may come with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            load_image(source)
    message = str(caught.value)
    assert isinstance(caught.value, PictaleError)
    assert message.endswith(".") and "\n" not in message and len(message) < 250
    return message


def test_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("Dear diary, today I took no photo at all.")
    assert refusal(path).startswith("notes.jpg is not a photo")
    assert "is not a photo" in refusal(b"%PDF-1.7 something")
    assert "HEIC" in refusal(b"\0\0\0\x18ftypheic" + bytes(100))
    assert "is not a photo" in refusal(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "is not a photo" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated(photo, format, tmp_path):
    data = encoded(photo.resize((300, 200)), format)
    path = tmp_path / f"holiday.{format.lower()}"
    for part in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * part)])
        assert "cut off or damaged" in refusal(path)
        assert "holiday" in refusal(path)


def test_random_damage_never_escapes(photo):
    """Bytes flipped anywhere give either some picture or an ImageError, never a traceback of a decoder."""
    random = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        whole = np.frombuffer(encoded(photo, format), dtype=np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[random.integers(0, min(len(data), 400), size=4)] = random.integers(0, 256, size=4)
            with contextlib.suppress(ImageError):
                assert load_image(data.tobytes()).mode == "RGB"


def test_empty(tmp_path):
    path = tmp_path / "nothing.png"
    path.touch()
    assert refusal(path).startswith("nothing.png is empty")
    assert "empty" in refusal(b"")
    assert "empty" in refusal(io.BytesIO())


def test_missing_file_folder_and_other_things(tmp_path):
    assert "no file" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path)
    assert "folder" in refusal("")
    assert "web address" in refusal("https://example.org/cat.jpg")
    assert "no photo" in refusal(None)
    assert "int" in refusal(7)
    assert "binary" in refusal(io.StringIO("text"))
    assert refusal("x" * 5000)
    assert refusal("bad\0name.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "ordinary file" in refusal(tmp_path / "pipe.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    assert "Permission" in refusal(path)


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, 400), (400, MIN_SIDE - 1)])
def test_too_small(size):
    image = Image.new("RGB", size)
    for source in (image, encoded(image, "PNG"), np.asarray(image)):
        assert "too small" in refusal(source)


def test_smallest_accepted():
    assert load_image(Image.new("RGB", (MIN_SIDE, MIN_SIDE))).size == (MIN_SIDE, MIN_SIDE)


def test_too_narrow():
    assert "strip" in refusal(Image.new("L", (20, 20 * MAX_ASPECT + 1)))
    assert load_image(Image.new("L", (20 * MAX_ASPECT, 20))).size == (20 * MAX_ASPECT, 20)


@pytest.mark.parametrize("size", [(20_000, 20_000), (8_000, 7_000), (12_000, 13_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_from_the_header(size):
    assert size[0] * size[1] > MAX_PIXELS
    assert "too large" in refusal(png_of_header(*size))


def test_pillow_settings_are_neither_changed_nor_needed(photo, monkeypatch):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    load_image(photo)
    refusal(png_of_header(20_000, 20_000))
    refusal(encoded(photo, "JPEG")[:800])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "20000x20000" in refusal(png_of_header(20_000, 20_000))


def test_the_largest_accepted_header_is_only_then_decoded():
    """Just under the limit the size passes, and the missing pixels are what is wrong."""
    assert "cut off or damaged" in refusal(png_of_header(7_000, 7_000))


def test_path_names_are_kept_as_typed(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save("été ☀.png")
    assert load_image("été ☀.png").size == photo.size
    assert load_image(Path("été ☀.png")).size == photo.size
