"""Read a photograph from whatever a person has: a file, bytes, a PIL image or an array, always into 8-bit RGB.

Training, the terminal and the page all read photos here, so that every one of them turns the same phone pictures
upright, flattens the same transparency and refuses the same broken files with the same sentence. Decoding is Pillow's;
what this file adds is the order of the checks: size and shape are judged from the header, before a pixel is unpacked.
"""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

MIN_SIDE = 16
"""Smallest side accepted, in pixels: below this there is nothing to see."""

MAX_PIXELS = 50_000_000
"""Most pixels accepted of anything but a JPEG: it is unpacked whole, which takes up to 12 bytes a pixel."""

MAX_JPEG_PIXELS = 120_000_000
"""Most pixels accepted of a JPEG, which is unpacked at a fraction of its size: large phone cameras give 108 million."""

MAX_ASPECT = 20
"""Greatest ratio of the longer to the shorter side: panoramas pass, strips do not."""

MAX_SIDE = 2048
"""Longer side of the result. Larger photos are reduced, because the models look at a few hundred pixels a side."""

# Pillow knows forty formats, some of which start other programs (EPS) or are not pictures; these are what cameras,
# phones and browsers write. HEIF counts only where the user has registered a plugin for it.
PHOTO_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_WARNINGS_LOCK = threading.Lock()


def load_image(source: Any) -> Image.Image:
    """Read a photo as an upright 8-bit RGB image whose longer side is at most `MAX_SIDE`.

    EXIF rotation is applied, transparency is laid on white, 16-bit and floating-point samples are scaled to 8 bits, and
    of an animation the first frame is taken (of a PIL image the frame it stands on). The source is never changed.

    Args:
        source (`PIL.Image.Image`, `str`, `os.PathLike`, `bytes`, file object or `np.ndarray`):
            Arrays are [height, width] or [height, width, 1 | 3 | 4], the last in the order RGB(A): `bool`, `uint8`,
            `uint16`, other integers within 0..255, or floating point within 0..1.

    Returns:
        `PIL.Image.Image`: mode RGB, a new object.

    Raises:
        ImageError: if there is no photo in `source`, or not one between `MIN_SIDE` and `MAX_PIXELS`, in one sentence.

    Example:
        >>> load_image(np.zeros((480, 640), dtype=np.uint8)).size
        (640, 480)
    """
    if source is None:
        raise ImageError("There is no photo: give a file name, bytes, a PIL image or an array.")
    if isinstance(source, Image.Image):
        return _finish(source, _name_of(getattr(source, "filename", None)))
    if isinstance(source, np.ndarray):
        return _finish(_image_from_array(source), "The array")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source), "The photo")
    if isinstance(source, (str, os.PathLike)):
        return _read_path(source)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise ImageError("The file object gives text: open the photo in binary mode, open(name, 'rb').")
        return _read(io.BytesIO(content), _name_of(getattr(source, "name", None)))
    raise ImageError(
        f"A {type(source).__name__} is not a photo: give a file name, bytes, a file object, a PIL image or an array."
    )


def load_images(images: Any) -> list[Image.Image]:
    """What `load_image` takes, or a list or tuple of that, as a list of images."""
    return [load_image(image) for image in (images if isinstance(images, (list, tuple)) else [images])]


def _read_path(source: str | os.PathLike) -> Image.Image:
    """Open a file by name, telling apart all the ways in which a name can be wrong."""
    text = os.fsdecode(source)
    shown = _shown(text)
    if text.startswith(("http://", "https://")):
        raise ImageError(f"{shown} is a web address: download the photo first and give the file.")
    path = Path(text)
    try:
        if path.is_dir():
            raise ImageError(f"{shown or 'An empty name'} is a folder: name the photo inside it.")
        if not path.exists():
            raise ImageError(f"There is no file {shown}: check the name and the folder.")
        if not path.is_file():  # opening a pipe or a device could wait for ever
            raise ImageError(f"{shown} is not an ordinary file: copy the photo to a file first.")
        with path.open("rb") as file:
            return _read(file, _name_of(text))
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{shown} cannot be opened ({reason}): check its name and permissions.") from error


def _read(file: IO[bytes], name: str) -> Image.Image:
    """Decode an open binary file that stands at its beginning."""
    head = file.read(16)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes): copy or download it again.")
    file.seek(0)
    try:
        with _silenced():
            Image.init()
            image = Image.open(file, formats=[known for known in PHOTO_FORMATS if known in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise ImageError(_not_a_photo(head, name)) from error
    except Exception as error:  # plugins raise a dozen kinds of error for damaged headers
        raise _damaged(name) from error
    with image:
        _check_size(image.size, name, image.format)
        image.draft(None, (MAX_SIDE, MAX_SIDE))  # large JPEGs are unpacked at 1/2, 1/4 or 1/8 of their size
        return _finish(image, name)


def _finish(image: Image.Image, name: str) -> Image.Image:
    """Check, unpack, turn upright, flatten and reduce any image."""
    _check_size(image.size, name, image.format)
    try:
        with _silenced():
            image.load()
        image = _upright(image)
        image = _simple_mode(image, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(name) from error
    scale = MAX_SIDE / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _check_size(size: tuple[int, int], name: str, format: str | None = None) -> None:
    short, long = sorted(size)
    limit = MAX_JPEG_PIXELS if format in ("JPEG", "MPO") else MAX_PIXELS
    if short < MIN_SIDE:
        raise ImageError(f"{name} is too small ({size[0]}x{size[1]} pixels): use one of at least {MIN_SIDE} a side.")
    if size[0] * size[1] > limit:
        raise _too_large(name, limit, f"{size[0]}x{size[1]} pixels, ")
    if long > MAX_ASPECT * short:
        raise ImageError(
            f"{name} is too narrow a strip ({size[0]}x{size[1]} pixels): crop it so that no side is more than "
            f"{MAX_ASPECT} times the other."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged metadata must not cost a person their photo."""
    try:
        with _silenced():
            if image.getexif().get(0x0112, 1) == 1:  # spares a copy of the many photos that stand upright already
                return image
            return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _simple_mode(image: Image.Image, name: str) -> Image.Image:
    """Bring any of Pillow's modes to L, RGB or RGBA, none of which loses anything when it is resized."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits_of_deep(np.asarray(image), name))
    if image.has_transparency_data:
        return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "LAB":
        raise ImageError(f"{name} uses the LAB colour space, which is not read here: save it as RGB.")
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits_of_deep(values: np.ndarray, name: str) -> np.ndarray:
    """Scale the samples of a grey 16-bit, 32-bit or floating-point file, [H, W], to uint8.

    16-bit files use the whole range of their type. Wider types carry no agreed range: theirs is guessed from the
    largest value, as 1.0, 255, 65535, or that value itself.
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has samples that are not numbers (NaN or infinity): replace them first.")
    if values.dtype.itemsize == 2:
        top = 65535.0
    else:
        largest = float(values.max())
        ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        top = next((limit for limit in ranges if largest <= limit), largest)
    return (values.clip(0) * np.float32(255 / top) + np.float32(0.5)).astype(np.uint8)


def _image_from_array(array: np.ndarray) -> Image.Image:
    """Turn a [H, W] or [H, W, 1 | 3 | 4] array into an image of mode L, RGB or RGBA."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [H, W]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(
            f"An array of shape {array.shape} is not a photo: give (height, width) or (height, width, 1, 3 or 4)."
        )
    _check_size((array.shape[1], array.shape[0]), "The array")
    kind = array.dtype.kind
    if kind not in "buif":
        raise ImageError(f"An array of {array.dtype} is not a photo: give uint8, uint16 or floats from 0 to 1.")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if kind == "f" and not np.isfinite(array).all():
        raise ImageError("The array has values that are not numbers (NaN or infinity): replace them first.")
    sixteen_bit = kind == "u" and array.dtype.itemsize == 2  # of either byte order
    top = 65535 if sixteen_bit else 1 if kind in "bf" else 255
    if kind != "b" and not sixteen_bit:
        low, high = array.min(), array.max()
        slack = 1e-3 if kind == "f" else 0  # resizing in floating point overshoots a little
        if low < -slack or high > top + slack:
            raise ImageError(
                f"The array of {array.dtype} reaches from {low:g} to {high:g}: scale floats to 0..1, or give uint8."
            )
    scaled = array * np.float32(255 / top) + np.float32(0.5)  # in floating point, whatever the type was
    return Image.fromarray(np.ascontiguousarray(scaled.clip(0, 255).astype(np.uint8)))


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep Pillow's warnings from the user, who gets one sentence instead. Warning filters belong to the whole process,
    so one thread at a time may hold them: threads decode in turn, processes side by side."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name_of(path: Any) -> str:
    """What sentences call a photo: the last part of its file name, where it has one."""
    return _shown(os.path.basename(path)) if isinstance(path, str) and path else "The photo"


def _shown(name: str) -> str:
    """A file name that fits a sentence: names may hold line breaks, and go on for pages."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= 100 else f"{name[:60]}...{name[-30:]}"


def _not_a_photo(head: bytes, name: str) -> str:
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heif", b"mif1", b"msf1"):
        return f"{name} is an HEIC photo, which is not read here: save or share it as JPEG."
    if head.startswith(_SIGNATURES) or head[8:12] == b"WEBP" or head[4:12] == b"ftypavif":
        return str(_damaged(name))
    return f"{name} is not a photo that can be read: give a JPEG, PNG, WebP, GIF, AVIF, BMP or TIFF file."


def _damaged(name: str) -> ImageError:
    return ImageError(f"{name} is cut off or damaged: copy or download it again, or save it anew as JPEG.")


def _too_large(name: str, limit: int = MAX_JPEG_PIXELS, size: str = "") -> ImageError:
    return ImageError(
        f"{name} is too large ({size}more than {limit // 1_000_000} megapixels): save a smaller copy of it as JPEG."
    )
