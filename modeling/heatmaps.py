"""Show where the captioner looked: the photo in dusk, lit as by a lamp where the attention lay.

The drawing of Show, Attend and Tell (arXiv:1502.03044, figures 3 and 5), which smoothed the map of a word and laid it
over the picture. The colours run from dark violet over red to pale yellow with rising lightness, so that the map also
reads in grey and for colour-blind eyes.
"""

import numpy as np
from PIL import Image

from .images import load_image

# Lightness rises evenly along these stops (position, red, green, blue).
_STOPS = np.array(
    [
        (0.00, 20, 11, 52),
        (0.25, 101, 21, 110),
        (0.50, 188, 55, 84),
        (0.75, 249, 142, 9),
        (1.00, 252, 255, 164),
    ],
    dtype=np.float32,
)
_STRONGEST = 0.6  # opacity of the colour where the map is highest: the photo must stay visible below it
_GREYED = 0.6  # how far the photo is drained of its own colours
_DUSK = 0.45  # brightness of the photo where the map is lowest


def attention_overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """Lay one word's attention over a photo.

    Args:
        image (`PIL.Image.Image`): the photo, or anything else that `load_image` reads.
        attention (`np.ndarray`): weights [grid height, grid width] >= 0 over the whole photo, of any scale: the lowest
            weight is drawn darkest and the highest brightest, a flat map stays dark.

    Returns:
        `PIL.Image.Image`: RGB, of the size of the photo as `load_image` gives it.

    Raises:
        ImageError: if the photo cannot be read.
        ValueError: if `attention` is not a finite two-dimensional map.
    """
    photo = load_image(image)
    weights = np.asarray(attention, dtype=np.float32)
    if weights.ndim != 2 or weights.size == 0 or not np.isfinite(weights).all():
        raise ValueError(f"attention must be a finite map [height, width], got an array of shape {weights.shape}")
    spread = weights.max() - weights.min()
    weights = (weights - weights.min()) / spread if spread > 1e-6 * weights.max() else np.zeros_like(weights)
    smooth = Image.fromarray(weights).resize(photo.size, Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)[..., None]  # [H, W, 1]; bicubic interpolation overshoots a little

    pixels = np.asarray(photo, dtype=np.float32)  # [H, W, 3]
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]  # [H, W, 1]
    pixels = (pixels + _GREYED * (grey - pixels)) * (_DUSK + (1 - _DUSK) * heat)
    colour = np.concatenate([np.interp(heat, _STOPS[:, 0], _STOPS[:, channel]) for channel in (1, 2, 3)], axis=-1)
    blended = pixels + _STRONGEST * heat * (colour - pixels)  # [H, W, 3]
    return Image.fromarray((blended + 0.5).astype(np.uint8))
