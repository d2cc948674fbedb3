"""The tiny preset of everything, as a newcomer would run it: train the four models, make styles, tell a story."""

import json

import pytest

from modeling import PictaleSkipThoughtsEncoder, StoryPipeline
from modeling.images import load_image
from tests.conftest import REPOSITORY
from training import train_captioner, train_skip_thoughts, train_story_decoder, train_storyteller
from training.make_style import styles_from_dataset
from training.recipes import read_recipe
from training.tiny_photos import draw, write_tiny_photos
from training.tiny_text import write_tiny_text


def recipe(name, cls, *changes):
    return read_recipe(REPOSITORY / "hub_configs" / name / "recipe.json", cls, list(changes))


@pytest.mark.slow
def test_from_data_to_story(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="the captioner is evaluated with pycocoevalcap")
    monkeypatch.setenv("PICTALE_DATA", str(tmp_path))
    write_tiny_text(tmp_path)
    write_tiny_photos(tmp_path / "tiny-photos")
    output = "training.output_dir={}".format
    train_captioner.run(
        recipe(
            "tiny-captioner",
            train_captioner.CaptionerRecipe,
            output(tmp_path / "captioner"),
            f"data.cache_dir={tmp_path / 'features'}",
        )
    )
    train_skip_thoughts.run(
        recipe("tiny-skip-thoughts", train_skip_thoughts.SkipThoughtsRecipe, output(tmp_path / "encoder"))
    )
    train_story_decoder.run(
        recipe(
            "tiny-story-decoder",
            train_story_decoder.StoryRecipe,
            output(tmp_path / "decoder"),
            f"data.encoder={tmp_path / 'encoder' / 'best'}",
        )
    )
    pipeline = tmp_path / "pipeline"
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "encoder" / "best").eval()
    train_storyteller.run(
        recipe("tiny-storyteller", train_storyteller.StorytellerRecipe, output(tmp_path / "storyteller"))
    )
    styles = {**styles_from_dataset("tiny-books", encoder), **styles_from_dataset("tiny-captions", encoder)}
    for name, style in styles.items():
        style.save(pipeline / "styles" / f"{name}.safetensors")
    components = {part: str(tmp_path / part / "best") for part in ("captioner", "encoder", "decoder", "storyteller")}
    (pipeline / "pipeline.json").write_text(json.dumps({"components": components, "styles": list(styles)}))

    pipe = StoryPipeline.from_pretrained(pipeline)
    red, blue = (load_image(draw(colour, shape)) for colour, shape in (("red", "circle"), ("blue", "square")))
    first, second = pipe([red, blue], style="romance", seed=1)
    assert first.captions[0].text != second.captions[0].text
    assert first.story != second.story
    assert pipe(red, style="horror", seed=1).story != first.story
    assert first.title and "garden" in first.story + second.story  # of every story that it has learned from
    assert pipe(red, style="horror", seed=1, writer="neural-storyteller", beam_width=3).story
