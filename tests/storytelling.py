"""A pipeline of tiny models with a storyteller, in a folder, and an engine that says what it is told to."""

import json
from pathlib import Path

import numpy as np

from modeling import PictaleSkipThoughtsEncoder, Style
from modeling.fingerprints import encoder_fingerprint
from modeling.story_engine import StoryEngine
from modeling.story_scheduler import Continuation
from tests.conftest import REPOSITORY

MODELS = REPOSITORY / "hub_configs"
PARTS = {
    "captioner": "tiny-captioner",
    "encoder": "tiny-skip-thoughts",
    "embedding": "tiny-joint-embedding",
    "storyteller": "tiny-storyteller",
}
GOOD = (
    "A {what} stood in the garden when Anna came home from the lake in the evening. She put down her basket and "
    "looked at it for a while. {who} walked along the old road with a lamp and stopped beside her. They did not speak, "
    "but both of them knew who had left it there. In the morning it was gone, and only {number} {what}s remembered the "
    "place."
)


def write_pipeline(folder: Path) -> Path:
    """A pipeline folder of the tiny models, with the styles romance and horror (random numbers)."""
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(MODELS / PARTS["encoder"])
    rng, size = np.random.default_rng(0), encoder.config.hidden_size
    for name in ("caption", "romance", "horror"):
        vector = rng.normal(0, 0.2, size).astype(np.float32)
        style = Style(name, vector, 30, "random numbers", encoder_fingerprint(encoder))
        (folder / "styles").mkdir(parents=True, exist_ok=True)
        style.save(folder / "styles" / f"{name}.safetensors")
    components = {part: str(MODELS / name) for part, name in PARTS.items()}
    description = {"components": components, "styles": ["romance", "horror", "caption"]}
    (folder / "pipeline.json").write_text(json.dumps(description))
    return folder


class SaidEngine(StoryEngine):
    """An engine without a model.

    Args:
        say: Given the model's folder, the prompt and a seed, the story.
    """

    def __init__(self, folder, say) -> None:
        self.folder, self.say, self.opened = Path(folder), say, 0

    def open(self, prompt: str, page: str = "", told: str = ""):
        self.opened += 1
        return _Said(self, prompt)


class _Said:
    """A state, and what is written on it."""

    def __init__(self, engine, prompt) -> None:
        self.engine, self.prompt, self.titled, self.said = engine, prompt, False, ()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def write(self, seeds, sampling, until=None, max_tokens=None, allow_end=True):
        texts = [f" {self.engine.say(self.engine.folder, self.prompt, seed)}" for seed in seeds]
        ended = "end"
        if not self.titled:
            texts, ended = [" A Title\nStory:"] * len(seeds), "stop"
        self.said = tuple(Continuation((1, 2), text, (-1.0, -1.0), ended) for text in texts)
        return self

    def __iter__(self):
        yield self.said

    def result(self):
        return self.said

    def keep(self, index=0) -> None:
        self.titled = True
