"""Make the tiny models of hub_configs/: untrained, for other people's tests. The same command gives the same bytes.

    python -m training.make_tiny

They load, generate and fail as the real ones do, and say nothing that makes sense. Sizes are those of the `recipe.json`
beside them, but for a narrower backbone; weights are random numbers from a fixed seed, as float16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from modeling import (
    PictaleCaptionerConfig,
    PictaleCaptionerForConditionalGeneration,
    PictaleImageProcessor,
    PictaleJointEmbedding,
    PictaleJointEmbeddingConfig,
    PictaleSkipThoughtsConfig,
    PictaleSkipThoughtsEncoder,
    PictaleStoryDecoderConfig,
    PictaleStoryDecoderForConditionalGeneration,
)
from modeling.fingerprints import backbone_fingerprint
from modeling.tokenization import BOS_ID, PAD_ID, UNK_ID, build_word_tokenizer

from .export_weights import export_weights
from .model_card import write_text
from .sync_code import REPOSITORY
from .tiny_storyteller import byte_pair_tokenizer, untrained_storyteller

WORDS = """the a of and in on with at by is was are were he she it they we you his her to from said not one two dog cat
horse bird man woman boy girl people red blue green black white beach street snow water grass house door
night morning garden lake runs walks sits jumps stands plays looks sees loved feared , . ! ? “ ” ’ -""".split()
NARROW = {"width": 0.1, "depth": 0.2, "head_channels": 32}
CARD = """---
library_name: transformers
license: apache-2.0
language: en
pipeline_tag: {task}
tags: [{tags}, pictale, tiny, random-weights]
---

# {name}

**Untrained.** {what} of Pictale in its smallest size, with random weights, for tests of programs that use the real one:
it loads and works in the same way, and what it says makes no sense. {parameters:,} parameters, {words} words.

```python
{usage}
```

Made by `python -m training.make_tiny`. [recipe.json](recipe.json) trains one like it on made-up data in seconds.

## Limits

It knows nothing. Use [{real}](../{real}/README.md) for anything but tests.

## Licence

Apache-2.0, weights and code.
"""
USAGE = {
    "tiny-captioner": """from transformers import pipeline

captioner = pipeline("image-captioning", model="hub_configs/tiny-captioner", trust_remote_code=True)
print(captioner("photo.jpg"))""",
    "tiny-skip-thoughts": """from transformers import AutoModel

encoder = AutoModel.from_pretrained("hub_configs/tiny-skip-thoughts", trust_remote_code=True)
print(encoder.encode(["A dog runs on the beach."]).shape)""",
    "tiny-story-decoder": """import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

decoder = AutoModelForSeq2SeqLM.from_pretrained("hub_configs/tiny-story-decoder", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("hub_configs/tiny-story-decoder")
ids = decoder.generate(torch.zeros(1, decoder.config.thought_size), max_new_tokens=20)
print(tokenizer.decode(ids[0]))""",
    "tiny-storyteller": """from transformers import pipeline

write = pipeline("text-generation", model="hub_configs/tiny-storyteller")
print(write("Write a mystery, short.\\nPhoto: A dog runs.\\nTitle:", max_new_tokens=20))""",
    "tiny-joint-embedding": """from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText

eyes = "hub_configs/tiny-captioner"
captioner = AutoModelForImageTextToText.from_pretrained(eyes, trust_remote_code=True)
pixels = AutoImageProcessor.from_pretrained(eyes, trust_remote_code=True)(Image.open("photo.jpg"), return_tensors="pt")
model = AutoModel.from_pretrained("hub_configs/tiny-joint-embedding", trust_remote_code=True).look_through(captioner)
print(model.similarity(model.embed_images(pixel_values=pixels.pixel_values), model.embed_texts(["A dog runs."])))""",
}
ABOUT = {
    "tiny-captioner": ("The captioner", "image-to-text", "image-captioning", "captioner-flickr8k"),
    "tiny-skip-thoughts": ("The sentence encoder", "feature-extraction", "skip-thoughts", "skip-thoughts-books"),
    "tiny-story-decoder": ("The story decoder", "text-generation", "story-generation", "story-decoder-books"),
    "tiny-storyteller": ("The storyteller", "text-generation", "story-generation", "storyteller-smollm2-135m"),
    "tiny-joint-embedding": (
        "The joint embedding of photographs and sentences",
        "feature-extraction",
        "image-text-retrieval",
        "joint-embedding-flickr8k",
    ),
}


def make(name: str, settings: dict, words: int, encoder_size: int, root: Path) -> torch.nn.Module:
    """An untrained model; wider weights than training starts from, so that its input matters.

    The joint embedding looks through the tiny captioner below `root`.
    """
    eyes = None
    if name == "tiny-joint-embedding":
        eyes = PictaleCaptionerForConditionalGeneration.from_pretrained(root / "tiny-captioner")
    torch.manual_seed(0)
    settings = {"vocab_size": words, **settings}
    if eyes is not None:
        backbone = eyes.encoder.backbone
        settings |= {
            "feature_size": backbone.channels,
            "backbone": eyes.config.backbone,
            "backbone_fingerprint": backbone_fingerprint(backbone, eyes.config),
        }
        return PictaleJointEmbedding(PictaleJointEmbeddingConfig(**settings))
    if name == "tiny-skip-thoughts":
        return PictaleSkipThoughtsEncoder(PictaleSkipThoughtsConfig(**settings, initializer_range=0.5))
    if name == "tiny-story-decoder":
        size = {"thought_size": encoder_size, "initializer_range": 0.7}
        model = PictaleStoryDecoderForConditionalGeneration(PictaleStoryDecoderConfig(**settings, **size))
    else:
        settings["backbone_options"] = NARROW
        model = PictaleCaptionerForConditionalGeneration(PictaleCaptionerConfig(**settings))
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.mul_(4)
        model.generation_config.update(num_beams=3, no_repeat_ngram_size=2)
    model.generation_config.update(max_new_tokens=12, suppress_tokens=[PAD_ID, BOS_ID, UNK_ID])
    return model


def build(root: Path) -> list[Path]:
    """Write the tiny folders below `root`, where their `recipe.json` lie; returns them."""
    sizes = {name: json.loads((root / name / "recipe.json").read_text(encoding="utf-8")).get("model") for name in ABOUT}
    words, pieces = build_word_tokenizer([" ".join(WORDS)]), byte_pair_tokenizer([" ".join(WORDS)])
    folders = []
    for name, settings in sizes.items():
        if name == "tiny-storyteller":
            tokenizer, model = pieces, untrained_storyteller(pieces)
        else:
            tokenizer = words
            model = make(name, settings, len(words), sizes["tiny-skip-thoughts"]["hidden_size"], root)
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            if name == "tiny-captioner":
                side = settings["image_size"]
                PictaleImageProcessor(size={"height": side, "width": side}).save_pretrained(place)
            export_weights(place, root / name)
        what, task, tags, real = ABOUT[name]
        parameters = model.num_parameters()
        card = CARD.format(
            name=name, what=what, task=task, tags=tags, real=real, parameters=parameters, words=len(tokenizer),
            usage=USAGE[name],
        )  # fmt: skip
        write_text(root / name / "README.md", card)
        folders.append(root / name)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for folder in build(REPOSITORY / "hub_configs"):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.relative_to(REPOSITORY)}: {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
