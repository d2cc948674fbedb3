"""The feature cache: right content, resumed after a kill, never stale, broken pictures counted."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import DataError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from training import feature_cache
from training.feature_cache import decode_image, open_cache, readable_size, weights_fingerprint
from training.photo_sources import AugmentOptions

OPTIONS = {"width": 0.25, "depth": 0.3, "head_channels": 24}


def encode(seed, size=(48, 40), **save):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, save.pop("format", "PNG"), **save)
    return data.getvalue()


def make_encoder():
    torch.manual_seed(0)
    config = PictaleCaptionerConfig(backbone_options=OPTIONS)
    return PictaleCaptionerForConditionalGeneration(config).encoder.eval()


def make_processor():
    return PictaleImageProcessor(size={"height": 64, "width": 64})


encoder = pytest.fixture(name="encoder")(make_encoder)
processor = pytest.fixture(name="processor")(make_processor)


@pytest.fixture
def images():
    return [encode(seed) for seed in range(7)]


class Killed(Exception):
    pass


def stop_after(encoder, batches):
    """Make `encoder.extract` die after some calls and count them."""
    extract, calls = encoder.extract, []

    def limited(pixels):
        calls.append(len(pixels))
        if len(calls) > batches:
            raise Killed
        return extract(pixels)

    encoder.extract = limited
    return calls


def test_backbones_that_see_the_same_share_a_cache(encoder):
    first = weights_fingerprint(encoder.backbone)
    weight = encoder.backbone.stem.conv.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] = 0.0
        zero = weights_fingerprint(encoder.backbone)
        weight[0, 0, 0, 0] = -0.0
    assert weights_fingerprint(encoder.backbone) == zero != first


def test_content_is_the_encoders_and_the_mirror_is_the_mirrored_picture(tmp_path, encoder, processor, images):
    cache = open_cache(encoder, processor, images, tmp_path, batch_size=3)
    assert cache.features.shape == (7, 2, 4, 24) and cache.features.dtype == np.float16 and cache.usable.all()
    with torch.inference_mode():
        pixels = processor(decode_image(images[5]), return_tensors="pt").pixel_values
        straight, mirrored = encoder.extract(pixels)[0], encoder.extract(pixels.flip(-1))[0]
    torch.testing.assert_close(cache.get(5).float(), straight, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(cache.get(5, 1).float(), mirrored, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(straight, mirrored, atol=1e-2)


def test_copies_are_changed_photographs_and_every_second_one_is_mirrored(tmp_path, encoder, processor, images):
    augment = AugmentOptions(crop=0.6, colour=0.2, cached=3)
    cache = open_cache(encoder, processor, images, tmp_path, batch_size=3, augment=augment)
    plain = open_cache(encoder, processor, images, tmp_path, batch_size=3)
    assert cache.features.shape == (7, 5, 4, 24) and cache.views == 2
    np.testing.assert_allclose(cache.features[:, :2], plain.features, atol=2e-3)
    for number, mirrored in enumerate((False, True, False)):
        copy = augment(decode_image(images[5]), np.random.default_rng((5, number)))
        pixels = processor(copy, return_tensors="pt").pixel_values
        with torch.inference_mode():
            expected = encoder.extract(pixels.flip(-1) if mirrored else pixels)[0]
        torch.testing.assert_close(torch.tensor(cache.features[5, 2 + number]).float(), expected, atol=2e-3, rtol=2e-3)
        assert not np.allclose(cache.features[5, 2 + number], plain.features[5, int(mirrored)], atol=1e-2)

    def drawn(view):
        rng = np.random.default_rng(0)
        tensors = [cache.get(5, view, rng).numpy() for _ in range(60)]
        return {next(v for v in range(5) if np.array_equal(cache.features[5, v], tensor)) for tensor in tensors}

    assert drawn(0) == {0, 2, 4} and drawn(1) == {1, 3}
    assert np.array_equal(cache.get(5), plain.get(5)) and np.array_equal(cache.get_many([5])[0], plain.get(5))


def test_second_opening_computes_nothing(tmp_path, encoder, processor, images):
    first = open_cache(encoder, processor, images, tmp_path)
    calls = stop_after(encoder, 1)  # one call measures nothing but the shape, and even that is not needed
    second = open_cache(encoder, processor, images, tmp_path)
    assert second.folder == first.folder and not calls
    assert np.array_equal(first.features, second.features)


def test_killed_run_goes_on_where_it_stopped(tmp_path, encoder, processor, images):
    whole = open_cache(encoder, processor, images, tmp_path / "whole", views=1, batch_size=2)
    extract = encoder.extract
    stop_after(encoder, 3)  # the shape and two batches
    with pytest.raises(Killed):
        open_cache(encoder, processor, images, tmp_path / "killed", views=1, batch_size=2)
    encoder.extract = extract
    calls = stop_after(encoder, 100)
    resumed = open_cache(encoder, processor, images, tmp_path / "killed", views=1, batch_size=2)
    assert calls == [2, 1]  # four of seven were done
    assert resumed.usable.all()
    np.testing.assert_allclose(resumed.features, whole.features, atol=2e-3)


def test_kill_before_the_key_starts_over(tmp_path, encoder, processor, images):
    cache = open_cache(encoder, processor, images, tmp_path)
    (cache.folder / "key.json").unlink()
    np.save(cache.folder / "state.npy", np.ones(3, np.uint8))
    assert open_cache(encoder, processor, images, tmp_path).usable.shape == (7,)


@pytest.mark.parametrize("change", ["size", "mean", "weights", "images", "views"])
def test_any_change_is_another_cache(tmp_path, encoder, processor, images, change):
    first = open_cache(encoder, processor, images, tmp_path)
    views = 2
    if change == "size":
        processor = PictaleImageProcessor(size={"height": 96, "width": 96})
    elif change == "mean":
        processor = PictaleImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.4, 0.4, 0.4])
    elif change == "weights":
        encoder.backbone.stem.norm.running_mean[0] += 0.5
    elif change == "images":
        images = [*images[:-1], encode(99)]
    else:
        views = 1
    assert open_cache(encoder, processor, images, tmp_path, views=views).folder != first.folder
    assert first.features.shape == (7, 2, 4, 24)


def test_broken_pictures_are_counted_and_skipped(tmp_path, encoder, processor, images, capsys):
    images = [images[0], None, b"not a picture", images[1][: len(images[1]) // 3], b"", images[2]]
    cache = open_cache(encoder, processor, images, tmp_path, batch_size=4)
    assert cache.usable.tolist() == [True, False, False, False, False, True]
    assert "4 of 6 images cannot be read" in capsys.readouterr().err
    again = open_cache(encoder, processor, images, tmp_path)
    assert again.usable.tolist() == cache.usable.tolist()


def test_nothing_readable_is_an_error(tmp_path, encoder, processor):
    with pytest.raises(DataError, match="none of the 2 images"):
        open_cache(encoder, processor, [b"x", None], tmp_path)


@pytest.mark.parametrize("frozen", [True, False])
def test_caching_changes_neither_weights_nor_mode(tmp_path, processor, images, frozen):
    """A new model is in training mode, where a BatchNorm that sees a picture moves its statistics."""
    config = PictaleCaptionerConfig(backbone_options=OPTIONS, freeze_backbone=frozen)
    encoder = PictaleCaptionerForConditionalGeneration(config).encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    open_cache(encoder, processor, images, tmp_path)
    assert encoder.training and not encoder._fused
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


# -- several processes -------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from tests.test_feature_cache import encode, make_encoder, make_processor
from training import feature_cache

root, gate = Path(sys.argv[1]), Path(sys.argv[2])
feature_cache.SAVE_SECONDS = 0.0
encoder, calls = make_encoder(), []
extract = encoder.extract

def gated(pixels):  # the shape and two batches go through, then the gate must open
    calls.append(len(pixels))
    if len(calls) > 3:
        deadline = time.monotonic() + 120
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    return extract(pixels)

encoder.extract = gated
images = [encode(seed) for seed in range(7)]
cache = feature_cache.open_cache(encoder, make_processor(), images, root, views=1, batch_size=2)
print(len(calls), int(cache.usable.sum()), float(np.abs(cache.features[:]).sum(dtype=np.float64)))
"""


@pytest.fixture
def start():
    """Starts children that open the cache in a folder; ends those that are left."""
    started = []

    def one(root, gate):
        repository = Path(__file__).resolve().parent.parent
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root), str(gate)],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield one
    for child in started:
        child.kill()
        child.communicate()


def wait_until_half_done(root, child):
    """Until the state on disk says that four of the seven pictures are done."""
    for _ in range(6000):
        files = list(root.glob("*/state.npy"))
        if files and (files[0].parent / "key.json").exists() and (np.load(files[0]) == feature_cache.DONE).sum() == 4:
            return
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.02)
    raise AssertionError("the child computes nothing")


def test_killed_process_is_taken_over(tmp_path, start, encoder, processor, images):
    """kill -9 in the middle: nothing that was done is done again, and what comes out is the same."""
    child = start(tmp_path / "killed", tmp_path / "never")
    wait_until_half_done(tmp_path / "killed", child)
    child.kill()
    child.wait()
    assert child.returncode == -9
    whole = open_cache(encoder, processor, images, tmp_path / "whole", views=1, batch_size=2)
    calls = stop_after(encoder, 100)
    resumed = open_cache(encoder, processor, images, tmp_path / "killed", views=1, batch_size=2)
    assert calls == [2, 1]
    assert resumed.usable.all()
    assert np.array_equal(resumed.features, whole.features)


def test_two_processes_at_once_compute_once(tmp_path, start):
    first = start(tmp_path / "cache", tmp_path / "gate")
    wait_until_half_done(tmp_path / "cache", first)
    second = start(tmp_path / "cache", tmp_path / "gate")
    for line in second.stderr:
        if "waiting for another process" in line:
            break
    else:
        raise AssertionError("the second process did not wait")
    (tmp_path / "gate").touch()
    (calls, *seen), (calls_again, *seen_again) = (child.communicate()[0].split() for child in (first, second))
    assert (int(calls), int(calls_again)) == (5, 0)  # the shape and four batches
    assert seen == seen_again and seen[0] == "7"


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_size_is_said_first_and_a_small_disk_refused(tmp_path, encoder, processor, images, capsys, monkeypatch):
    open_cache(encoder, processor, images, tmp_path)
    needed = 7 * 2 * 4 * 24 * 2
    assert f"take {needed} bytes in {tmp_path}" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    with pytest.raises(DataError, match="where .* free: choose another data.cache_dir") as error:
        open_cache(encoder, processor, images, tmp_path / "full")
    assert "\n" not in str(error.value) and not list((tmp_path / "full").glob("*/*"))


def test_disk_that_fills_up_meanwhile(tmp_path, encoder, processor, images, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match="No space left on device"):
        open_cache(encoder, processor, images, tmp_path)
    monkeypatch.undo()
    assert open_cache(encoder, processor, images, tmp_path).usable.all()


def test_cache_folder_that_is_a_file(tmp_path, encoder, processor, images):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be kept in .*cache_dir"):
        open_cache(encoder, processor, images, tmp_path / "file")


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (3_200_000, "3.2 MB"), (1_550_000_000, "1.6 GB")])
def test_sizes_are_readable(count, text):
    assert readable_size(count) == text


# -- precision ---------------------------------------------------------------------------------------------------------


def test_bf16_is_another_cache_and_near(tmp_path, encoder, processor, images):
    exact = open_cache(encoder, processor, images, tmp_path, views=1)
    rough = open_cache(encoder, processor, images, tmp_path, views=1, precision="bf16")
    assert rough.folder != exact.folder
    assert json.loads((rough.folder / "key.json").read_text())["precision"] == "bf16"
    assert not np.array_equal(rough.features, exact.features)
    difference = np.linalg.norm((rough.features - exact.features).astype(np.float32))
    assert difference < 0.1 * np.linalg.norm(exact.features.astype(np.float32))
    with pytest.raises(DataError, match="fp32 or bf16, not 'int8'"):
        open_cache(encoder, processor, images, tmp_path, precision="int8")
