"""The heat map by property: light falls where the attention lay, wherever the grid and whatever its scale."""

import numpy as np
import pytest
from PIL import Image

from modeling.heatmaps import attention_overlay


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float32)


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (64, 64)])
@pytest.mark.parametrize("place", [(0, 0), (3, 6), (6, 2)])
def test_light_falls_on_the_place_attended(size, place):
    photo = Image.new("RGB", size, (90, 120, 90))
    attention = np.full((7, 7), 0.001, dtype=np.float32)
    attention[place] = 0.9
    overlay = attention_overlay(photo, attention)
    assert (overlay.size, overlay.mode) == (size, "RGB")
    light = brightness(overlay)
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert (int(y * 7 / size[1]), int(x * 7 / size[0])) == place
    far = light[:: size[1] - 1, :: size[0] - 1].min()  # the darkest corner
    assert far < 0.6 * brightness(photo).mean() < light.max()


def test_scale_of_the_weights_does_not_matter():
    photo = Image.effect_noise((200, 150), 60).convert("RGB")
    attention = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    expected = np.asarray(attention_overlay(photo, attention)).astype(int)
    for scaled in (attention * 1e-4, attention * 1e4, (attention * 5 + 3).astype(np.float64)):
        assert np.abs(np.asarray(attention_overlay(photo, scaled)).astype(int) - expected).max() <= 1


def test_flat_map_lights_nothing():
    photo = Image.new("RGB", (64, 64), (200, 100, 50))
    flat = np.asarray(attention_overlay(photo, np.full((7, 7), 1 / 49)))
    assert np.unique(flat.reshape(-1, 3), axis=0).shape == (1, 3)
    assert flat.max() < 200


def test_smooth_between_the_places():
    attention = np.zeros((7, 7), dtype=np.float32)
    attention[3, 3] = 1
    light = brightness(attention_overlay(Image.new("RGB", (350, 350), "grey"), attention))
    assert np.abs(np.diff(light, axis=0)).max() < 12
    assert np.abs(np.diff(light, axis=1)).max() < 12


@pytest.mark.parametrize("attention", [np.zeros(7), np.zeros((0, 0)), np.full((7, 7), np.nan), np.zeros((2, 7, 7))])
def test_wrong_maps_are_refused(attention):
    with pytest.raises(ValueError, match="finite map"):
        attention_overlay(Image.new("RGB", (64, 64)), attention)
