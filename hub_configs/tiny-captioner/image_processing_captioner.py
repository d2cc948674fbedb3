"""Photograph to pixel values, the way the EfficientNet-Lite backbones were trained: RGB, bicubic, (x - 127) / 128.

The whole picture is squashed to a square rather than cropped: a caption should not miss what stands at the edge, and
the Flickr8k pictures it was trained on are squashed already, so training and use see the same geometry.
"""

from __future__ import annotations

from transformers import PilBackend
from transformers.image_utils import PILImageResampling


class PictaleImageProcessor(PilBackend):
    """Resizes to `size` (height, width), rescales to 0..1 and normalises; needs no torchvision.

    Example:
        >>> PictaleImageProcessor()(photo, return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BICUBIC
    image_mean = [127 / 255] * 3
    image_std = [128 / 255] * 3
    size = {"height": 224, "width": 224}
    do_resize = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True


PictaleImageProcessor.register_for_auto_class("AutoImageProcessor")
