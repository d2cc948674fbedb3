"""Untrained models of a few thousand parameters, and a pipeline made of them."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
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
    StoryOptions,
    StoryPipeline,
    Style,
)
from modeling.fingerprints import backbone_fingerprint, encoder_fingerprint
from modeling.tokenization import build_word_tokenizer
from training.tiny_storyteller import byte_pair_tokenizer, untrained_storyteller

WORDS = "dog cat beach runs sleeps red blue house old lady night door she he said the a on in of was . , “ ” !".split()
BOOK = "\n\n".join(
    f"The old lady of the {colour} house said that the dog was in the sea and the cat on the beach at {hour} o'clock."
    for colour in ("red", "blue", "green", "white", "black")
    for hour in ("one", "two", "three", "four", "five")
)

OPTIONS = {"candidates": 3, "length": "short"}  # of the tiny pipeline


def tiny_tokenizer():
    return build_word_tokenizer([" ".join(WORDS)])


def tiny_encoder(seed: int = 0, **settings) -> PictaleSkipThoughtsEncoder:
    torch.manual_seed(seed)
    config = PictaleSkipThoughtsConfig(
        vocab_size=len(tiny_tokenizer()),
        embedding_size=16,
        adaptive_cutoff=12,
        hidden_size=24,
        initializer_range=0.5,
        **settings,
    )
    return PictaleSkipThoughtsEncoder(config).eval()


def tiny_decoder(seed: int = 0, layers: int = 1, style_size: int = 0) -> PictaleStoryDecoderForConditionalGeneration:
    torch.manual_seed(seed)
    config = PictaleStoryDecoderConfig(
        vocab_size=len(tiny_tokenizer()),
        embedding_size=16,
        adaptive_cutoff=12,
        hidden_size=32,
        num_hidden_layers=layers,
        thought_size=24,
        condition_size=12,
        style_size=style_size,
        initializer_range=0.7,
    )
    model = PictaleStoryDecoderForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens = [0, 1, 3]
    return model


@functools.cache
def tiny_storyteller() -> Path:
    """Folder of a storyteller that writes the words above and ends sentences; any other piece is most unlikely."""
    words = [word for word in WORDS if word.isalpha()]
    tokenizer = byte_pair_tokenizer([" " + " ".join(words)] * 9)
    said = [*(tokenizer.encode(f" {word}") for word in words), *map(tokenizer.encode, ".!,")]
    assert all(len(ids) == 1 for ids in said)
    unlikely = sorted(set(range(len(tokenizer))) - {ids[0] for ids in said} - {tokenizer.eos_token_id})
    model = untrained_storyteller(tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight[unlikely] *= 0.05
    folder = Path(tempfile.mkdtemp(prefix="tiny-storyteller-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_captioner(
    seed: int = 0, vocab_size: int | None = None, **options: Any
) -> PictaleCaptionerForConditionalGeneration:
    torch.manual_seed(seed)
    config = PictaleCaptionerConfig(
        vocab_size=vocab_size or len(tiny_tokenizer()),
        backbone="efficientnet_lite0",
        backbone_options={"width": 0.25, "depth": 0.3, "head_channels": 64},
        image_size=64,
        embed_dim=16,
        context_dim=16,
        attention_dim=16,
        hidden_size=24,
        **options,
    )
    model = PictaleCaptionerForConditionalGeneration(config).eval()
    with torch.no_grad():  # a random model says the same of everything; make the photo matter
        for parameter in model.decoder.parameters():
            parameter.mul_(4)
    model.generation_config.max_new_tokens = 8
    return model


def tiny_embedding(captioner: PictaleCaptionerForConditionalGeneration, seed: int = 0) -> PictaleJointEmbedding:
    """A joint embedding on this captioner's backbone."""
    torch.manual_seed(seed)
    config = PictaleJointEmbeddingConfig(
        feature_size=captioner.encoder.backbone.channels,
        backbone_fingerprint=backbone_fingerprint(captioner.encoder.backbone),
        vocab_size=len(tiny_tokenizer()),
        word_size=8,
        hidden_size=12,
        embedding_size=6,
    )
    model = PictaleJointEmbedding(config).eval()
    torch.nn.init.normal_(model.pooling.scores.weight, std=2.0)  # as if it had learned where to look
    model.tokenizer = tiny_tokenizer()
    return model


def tiny_styles(encoder: PictaleSkipThoughtsEncoder) -> list[Style]:
    rng = np.random.default_rng(0)
    size, fingerprint = encoder.config.hidden_size, encoder_fingerprint(encoder)
    return [
        Style(name, rng.normal(0, 0.2, size).astype(np.float32), 30, "random numbers", fingerprint)
        for name in ("caption", "romance", "horror")
    ]


def tiny_pipeline() -> StoryPipeline:
    encoder = tiny_encoder()
    return StoryPipeline(
        captioner=tiny_captioner(),
        image_processor=PictaleImageProcessor(size={"height": 64, "width": 64}),
        caption_tokenizer=tiny_tokenizer(),
        encoder=encoder,
        encoder_tokenizer=tiny_tokenizer(),
        styles=tiny_styles(encoder),
        storyteller=tiny_storyteller(),
        decoder=tiny_decoder(),
        decoder_tokenizer=tiny_tokenizer(),
        options=StoryOptions(**OPTIONS),
    )


def save_tiny_pipeline(folder: Path) -> Path:
    """A pipeline folder with its components beside it, as hub_configs/ has them."""
    pipe = tiny_pipeline()
    parts = {
        "captioner": (pipe.captioner, pipe.caption_tokenizer, pipe.image_processor),
        "encoder": (pipe.encoder, pipe.encoder.tokenizer),
        "decoder": (pipe.decoder, pipe.decoder_tokenizer),
    }
    for name, savers in parts.items():
        for saver in savers:
            saver.save_pretrained(folder / f"tiny-{name}")
    shutil.copytree(tiny_storyteller(), folder / "tiny-storyteller")
    (folder / "tiny-pipeline" / "styles").mkdir(parents=True)
    for name, style in {**pipe.styles, "caption": pipe._styles["caption"]}.items():
        style.save(folder / "tiny-pipeline" / "styles" / f"{name}.safetensors")
    description = {
        "components": {name: f"pictale/tiny-{name}" for name in (*parts, "storyteller")},
        "styles": ["caption", "romance", "horror"],
        "options": OPTIONS,
    }
    (folder / "tiny-pipeline" / "pipeline.json").write_text(json.dumps(description))
    return folder / "tiny-pipeline"
