"""Features of a frozen backbone, computed once and kept on disk.

A cache is a folder named by a fingerprint of everything that decides its content: the backbone's weights, the
preprocessing, the photographs and the views. Change one of them and it is another folder, so a cache is never stale.
It holds
    features.npy   float16 [images, views, P, F], memory-mapped
    state.npy      uint8 [images]: 0 to do, 1 done, 2 broken
    key.json       what the fingerprint was made of, for people
State follows the features to disk every few seconds, so a killed run goes on where it stopped. View 0 is the
photograph, view 1 its mirror image; cropped and recoloured copies follow, every second one mirrored. Of several
processes that open one cache, the first to lock it computes and the others wait; the lock is the operating system's, so
it goes with a process that is killed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import nn
from tqdm import tqdm

from modeling.errors import DataError, ImageError
from modeling.images import load_image

from .caption_sources import image_names, say_skipped

if TYPE_CHECKING:
    from .photo_sources import AugmentOptions

TO_DO, DONE, BROKEN = 0, 1, 2
FORMAT_VERSION = 2
SAVE_SECONDS = 2.0  # at most so much work is lost in a kill
READERS = 2  # batches decoded while the backbone looks at another
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class FeatureCache:
    """An opened cache: `features` float16 [images, views and copies, P, F] on disk, `usable` bool [images].

    `kind` is the captioner's argument that the features are for; `stage_features` are [images, views, C, h, w]. `views`
    is 2 where there are mirror images.
    """

    folder: Path
    features: np.ndarray
    usable: np.ndarray
    kind: str = "region_features"
    views: int = 1

    def __len__(self) -> int:
        return len(self.usable)

    def get(self, row: int, view: int = 0, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Features [P, F] of one photograph, float16, mirrored if `view` is 1; `rng` draws among its copies."""
        kept = range(view, self.features.shape[1], self.views)
        if rng is not None and len(kept) > 1:
            view = kept[int(rng.integers(len(kept)))]
        return torch.from_numpy(np.array(self.features[row, view]))

    def get_many(self, rows: Sequence[int]) -> torch.Tensor:
        """Region features [B, P, F] of the photographs as they are, float16."""
        return torch.from_numpy(self.features[list(rows), 0])


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, names excluded; 0 and -0, which give the same features, are one."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update((tensor.detach().cpu() + 0).contiguous().numpy().tobytes())  # -0 + 0 is 0
    return digest.hexdigest()


def images_fingerprint(images: Sequence[bytes | None]) -> str:
    """Hash of the encoded photographs in order."""
    digest = hashlib.sha256()
    for data in images:
        digest.update(hashlib.sha256(data or b"").digest())
    return digest.hexdigest()


def decode_image(data: bytes | None) -> Image.Image | None:
    """The photograph as the pipeline would read it, or None if it cannot be read."""
    try:
        return load_image(data)
    except ImageError:
        return None


def open_cache(
    encoder: nn.Module,
    processor,
    images: Sequence[bytes | None],
    root: str | Path,
    *,
    views: int = 2,
    batch_size: int = 16,
    label: str = "photographs",
    kind: str = "region_features",
    precision: str = "fp32",
    augment: AugmentOptions | None = None,
) -> FeatureCache:
    """Open the cache of `images`, computing whatever is still missing.

    Args:
        encoder: a captioner's encoder; `extract(pixel_values)` gives [B, P, F]. Its weights are part of the key.
        processor: the image processor; its settings are part of the key.
        images: encoded photographs; None or undecodable bytes are marked broken and counted.
        root: folder that holds all caches.
        views: 1 for the photograph alone, 2 with its mirror image.
        label: what the progress bar says.
        kind: which argument of the captioner the features are for.
        precision: "fp32", or "bf16" to compute under autocast, which takes half the time where the hardware has it and
            moves the features of EfficientNet-Lite by 7 % of their norm.
        augment: makes `augment.cached` changed copies of each photograph, which are kept beside its views.

    Raises:
        DataError: no image can be read, the disk is too small, or the folder cannot be written.
    """
    if precision not in PRECISIONS:
        raise DataError(f"The precision of cached features is {' or '.join(PRECISIONS)}, not '{precision}'.")
    key = {
        "format": FORMAT_VERSION,
        "backbone": weights_fingerprint(encoder.backbone),
        "preprocessing": {k: v for k, v in json.loads(processor.to_json_string()).items() if k != "auto_map"},
        "images": images_fingerprint(images),
        "count": len(images),
        "views": views,
    } | ({} if precision == "fp32" else {"precision": precision})
    if augment is not None:
        key["augment"] = asdict(augment)
    folder = Path(root).expanduser() / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    state = _read_state(folder)
    if state is None or (state == TO_DO).any():
        with _locked(folder, label), _evaluating(encoder):
            if _read_state(folder) is None:
                kept = views + (augment.cached if augment else 0)
                _create(folder, key, _feature_shape(encoder, processor), len(images), kept, label)
            _fill(encoder, processor, images, folder, batch_size, label, precision, views, augment)
        state = _read_state(folder)
    broken = int((state == BROKEN).sum())
    if broken:
        names = image_names(images, np.flatnonzero(state == BROKEN))
        say_skipped(f"{label}: {{}} of {len(images)} images cannot be read", names)
    if broken == len(images):
        raise DataError(f"{label}: none of the {len(images)} images can be read.")
    return FeatureCache(folder, np.load(folder / "features.npy", mmap_mode="r"), state == DONE, kind, views)


def _read_state(folder: Path) -> np.ndarray | None:
    """State of each photograph, or None where there is no whole cache."""
    return np.load(folder / "state.npy") if (folder / "key.json").exists() else None


@contextmanager
def _locked(folder: Path, label: str) -> Iterator[None]:
    """Hold the cache's lock, which lies beside its folder. What the disk refuses meanwhile is told in one sentence."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{label}: waiting for another process that computes these features.", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"The features of {label} cannot be kept in {folder.parent} ({error.strerror or error}): choose another "
            "data.cache_dir."
        ) from None


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Eval mode, so that no BatchNorm moves; afterwards the mode it had."""
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def _feature_shape(encoder: nn.Module, processor) -> tuple[int, ...]:
    """(P, F), measured on a grey picture."""
    pixels = processor(Image.new("RGB", (32, 32), "grey"), return_tensors="pt").pixel_values
    with torch.inference_mode():
        return tuple(encoder.extract(pixels.to(next(encoder.parameters()).device)).shape[1:])


def readable_size(count: int) -> str:
    """Bytes as people write them: 512 bytes, 3.2 MB, 1.5 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _create(folder: Path, key: dict, shape: tuple[int, ...], count: int, views: int, label: str) -> None:
    """Empty files; key.json comes last, because its presence says that the others are whole."""
    shutil.rmtree(folder, ignore_errors=True)
    needed = 2 * count * views * math.prod(shape)
    free = shutil.disk_usage(folder.parent).free
    sizes = f"{readable_size(needed)} in {folder.parent}, where {readable_size(free)} are free"
    if needed + count > free:
        raise DataError(
            f"The features of {label} take {sizes}: choose another data.cache_dir, fewer copies, or data.mirror false."
        )
    print(f"{label}: features of {count} photographs, {views} of each, take {sizes}.", file=sys.stderr)
    folder.mkdir()
    np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float16, shape=(count, views, *shape)
    ).flush()
    if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process, not raise an error
        with (folder / "features.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    np.lib.format.open_memmap(folder / "state.npy", mode="w+", dtype=np.uint8, shape=(count,)).flush()
    temporary = folder / "key.json.writing"
    temporary.write_text(json.dumps(key, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(temporary, folder / "key.json")


def _batches(
    images: Sequence[bytes | None],
    rows: np.ndarray,
    processor,
    batch_size: int,
    views: int,
    augment: AugmentOptions | None,
) -> Iterator[tuple[np.ndarray, list[int], list[torch.Tensor]]]:
    """Rows of a batch, those that can be read and the pixels [B, 3, H, W] of each view and copy of them, none if none
    can be read; decoded in threads, batches ahead."""

    def copy(image: Image.Image, row: int, number: int) -> Image.Image:
        return augment(image, np.random.default_rng((row, number)))  # the same after a kill

    def prepare(batch: np.ndarray) -> tuple[np.ndarray, list[int], list[torch.Tensor]]:
        decoded = {int(row): decode_image(images[int(row)]) for row in batch}
        good = {row: image for row, image in decoded.items() if image is not None}
        if not good:
            return batch, [], []
        pixels = processor(list(good.values()), return_tensors="pt").pixel_values
        seen = [pixels, pixels.flip(-1)][:views]
        for number in range(augment.cached if augment else 0):
            copies = processor([copy(image, row, number) for row, image in good.items()], return_tensors="pt")
            seen.append(copies.pixel_values.flip(-1) if len(seen) % views else copies.pixel_values)
        return batch, list(good), seen

    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        for start in range(0, len(rows), batch_size):
            waiting.append(pool.submit(prepare, rows[start : start + batch_size]))
            if len(waiting) > READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@torch.inference_mode()
def _fill(
    encoder,
    processor,
    images,
    folder: Path,
    batch_size: int,
    label: str,
    precision: str,
    views: int,
    augment: AugmentOptions | None,
) -> None:
    """Compute what the state on disk says is still to do, batch by batch."""
    features = np.lib.format.open_memmap(folder / "features.npy", mode="r+")
    saved = np.lib.format.open_memmap(folder / "state.npy", mode="r+")
    state = np.array(saved)
    rows = np.flatnonzero(state == TO_DO)
    if not len(rows):
        return  # another process has done them meanwhile
    device = next(encoder.parameters()).device
    if hasattr(encoder, "prepare_for_inference"):
        encoder.prepare_for_inference()

    def save() -> None:
        features.flush()
        saved[:] = state
        saved.flush()

    last = time.monotonic()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    bar = tqdm(total=len(rows), desc=f"features of {label}", unit="image", mininterval=2, file=sys.stderr)
    try:
        for batch, good, pixels in _batches(images, rows, processor, batch_size, views, augment):
            for view, picture in enumerate(pixels):
                with autocast:
                    seen = encoder.extract(picture.to(device))
                features[good, view] = seen.to(torch.float16).cpu().numpy()
            state[batch] = BROKEN
            state[good] = DONE
            bar.update(len(batch))
            if time.monotonic() - last > SAVE_SECONDS:
                save()
                last = time.monotonic()
    finally:
        save()
        bar.close()
