"""The feature cache: right content, resumed after a kill, never stale, broken pictures counted."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import DataError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from training.feature_cache import decode_image, open_cache

OPTIONS = {"width": 0.25, "depth": 0.3, "head_channels": 24}


def encode(seed, size=(48, 40), **save):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, save.pop("format", "PNG"), **save)
    return data.getvalue()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = PictaleCaptionerConfig(backbone_options=OPTIONS)
    return PictaleCaptionerForConditionalGeneration(config).encoder.eval()


@pytest.fixture
def processor():
    return PictaleImageProcessor(size={"height": 64, "width": 64})


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


def test_content_is_the_encoders_and_the_mirror_is_the_mirrored_picture(tmp_path, encoder, processor, images):
    cache = open_cache(encoder, processor, images, tmp_path, batch_size=3)
    assert cache.features.shape == (7, 2, 4, 24) and cache.features.dtype == np.float16 and cache.usable.all()
    with torch.inference_mode():
        pixels = processor(decode_image(images[5]), return_tensors="pt").pixel_values
        straight, mirrored = encoder.extract(pixels)[0], encoder.extract(pixels.flip(-1))[0]
    torch.testing.assert_close(cache.get(5).float(), straight, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(cache.get(5, 1).float(), mirrored, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(straight, mirrored, atol=1e-2)


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
