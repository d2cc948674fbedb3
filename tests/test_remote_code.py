"""The folders of hub_configs/, copied elsewhere and loaded by a process without this package, do as modeling/ does."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modeling import (
    ImageCaptioningPipeline,
    ImageToStoryPipeline,
    PictaleCaptionerForConditionalGeneration,
    PictaleCaptionerProcessor,
    PictaleImageProcessor,
    PictaleJointEmbedding,
    PictaleSkipThoughtsEncoder,
    PictaleStoryDecoderForConditionalGeneration,
    PictaleStoryteller,
    StoryPipeline,
)
from modeling.images import load_image
from modeling.pipeline_captioning import photo
from modeling.pipeline_files import TRANSFORMERS_CONFIG
from tests.conftest import REPOSITORY

FOLDERS = [f for f in sorted((REPOSITORY / "hub_configs").iterdir()) if (f / "config.json").exists()]
STORYTELLER = REPOSITORY / "hub_configs" / "storyteller-smollm2-135m" / "config.json"
OF_KIND = {
    kind: [f for f in FOLDERS if json.loads((f / "config.json").read_text())["model_type"] == f"pictale_{kind}"]
    for kind in ("captioner", "joint_embedding", "skip_thoughts", "story_decoder", "storyteller")
}


def of_kind(kind):
    return pytest.mark.parametrize("folder", OF_KIND[kind], ids=lambda f: f.name)


@pytest.fixture(scope="module")
def photos(example_photos):
    return [str(path) for path in example_photos[:3]]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, photos):
    """What a process elsewhere, offline and with an empty cache, gets out of copies of the folders."""
    place = tmp_path_factory.mktemp("elsewhere")
    for folder in FOLDERS:
        if folder in OF_KIND["storyteller"] and not STORYTELLER.is_file():
            continue
        shutil.copytree(folder, place / "copies" / folder.name, ignore=shutil.ignore_patterns("examples"))
    program = shutil.copy(REPOSITORY / "tests" / "support" / "foreign_process.py", place)
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home"), "PATH": os.environ["PATH"]}
    run = subprocess.run(
        [sys.executable, program, str(place / "copies"), *photos],
        cwd=place,
        env=settings | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@of_kind("captioner")
def test_captioner(folder, foreign, photos):
    got = foreign[folder.name]
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder).prepare_for_inference()
    pictures = [load_image(path) for path in photos]
    pixels = PictaleImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    ids = model.generate(pixel_values=pixels)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (got["model"], got["config"]) == (type(model).__name__, type(model.config).__name__)
    assert got["processor"] == PictaleCaptionerProcessor.__name__
    assert got["pixels"] == pytest.approx(float(pixels.double().sum()), abs=1e-3)
    assert got["ids"] == ids.tolist()
    assert got["captions"] == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert got["tokenizer"] == tokenizer.decode(ids[0])
    end = tokenizer.eos_token_id
    assert [row[-1] for row in got["labels"]] == [end, -100] and [row.index(end) for row in got["labels"]] == [3, 2]


@of_kind("captioner")
def test_image_captioning_pipeline(folder, foreign, photos):
    got = foreign[folder.name]
    assert [len(captions) for captions in got["pipeline"]] == [2] * len(photos)
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder)
    processor, tokenizer = PictaleImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    here = ImageCaptioningPipeline(model=model, image_processor=processor, tokenizer=tokenizer)
    for path, captions in zip(photos, got["pipeline"], strict=True):
        alone = here(path, num_captions=2)  # photographs one by one say what they said in a batch
        assert [c["generated_text"] for c in alone] == [c["generated_text"] for c in captions]
        np.testing.assert_allclose([c["score"] for c in alone], [c["score"] for c in captions], atol=1e-4)
        assert captions[0]["score"] > captions[1]["score"] or len(captions[0]["generated_text"]) != len(
            captions[1]["generated_text"]
        )
    assert [c["generated_text"] for c in got["single"]] == got["captions"][:1]
    shown = got["attention"]
    assert " ".join(shown["words"]) == shown["generated_text"]
    maps = np.array(shown["attention"])
    assert maps.shape == (len(shown["words"]), *model.grid_size)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)
    assert here(photos[0], max_new_tokens=2)[0]["generated_text"].count(" ") <= 1
    drawn = here(photos[:2], generate_kwargs={"do_sample": True, "num_beams": 1}, num_captions=3)
    assert [len(captions) for captions in drawn] == [3, 3]


@of_kind("skip_thoughts")
def test_encoder(folder, foreign):
    got = foreign[folder.name]
    model = PictaleSkipThoughtsEncoder.from_pretrained(folder)
    expected = model.encode(["A dog runs on the beach.", "Two children play."])
    assert (got["model"], got["config"]) == (type(model).__name__, type(model.config).__name__)
    np.testing.assert_allclose(np.array(got["vectors"]), expected, atol=1e-6)


@of_kind("joint_embedding")
def test_joint_embedding(folder, foreign):
    got = foreign[folder.name]
    model = PictaleJointEmbedding.from_pretrained(folder).eval()
    expected = model.embed_texts(["A dog runs on the beach.", "Two children play."])
    assert (got["model"], got["config"]) == (type(model).__name__, type(model.config).__name__)
    np.testing.assert_allclose(np.array(got["vectors"]), expected, atol=1e-6)


@of_kind("story_decoder")
def test_decoder(folder, foreign):
    got = foreign[folder.name]
    model = PictaleStoryDecoderForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    thought = torch.linspace(-1, 1, model.config.thought_size).unsqueeze(0) / 10
    words = torch.tensor([tokenizer.convert_tokens_to_ids(["dog", "red"])])
    ids = model.generate(thought, content_ids=words, do_sample=False, max_new_tokens=12)
    assert (got["model"], got["config"]) == (type(model).__name__, type(model.config).__name__)
    assert got["ids"] == ids.tolist() and got["text"] == tokenizer.decode(ids[0])


@of_kind("storyteller")
def test_storyteller(folder, foreign, photos, shipped_storyteller):
    got = foreign[folder.name]
    assert got["model"] == PictaleStoryteller.__name__
    asked = got["asked"]
    pipe = StoryPipeline.from_pretrained(folder)
    here = ImageToStoryPipeline(model=PictaleStoryteller(PictaleStoryteller.config_class(), pipe))
    assert got["direct"] == got["single"]["story"] == got["stories"][0]["story"]
    for path, told in zip(photos, got["stories"], strict=True):
        expected = pipe(path, **asked)
        assert told["story"] == expected.story == here(path, **asked)["story"]
        assert (told["style"], told["seed"], told["title"]) == (expected.style, 5, expected.title)
        assert [c["generated_text"] for c in told["captions"]] == [c.text for c in expected.captions]
    assert len({told["story"] for told in got["stories"]}) > 1
    if pipe.can_retrieve:
        near = here(photos[0], captions="retrieve", **asked)
        assert all(caption["remembered"] for caption in near["captions"])
        assert near["story"] == pipe(photos[0], captions="retrieve", **asked).story


def test_a_pipeline_folder_says_what_its_code_is():
    for folder in OF_KIND["storyteller"]:
        config = json.loads((folder / "config.json").read_text())
        assert {key: config[key] for key in TRANSFORMERS_CONFIG} == TRANSFORMERS_CONFIG


def test_an_address_that_gives_no_photo_is_one_sentence(monkeypatch):
    from modeling import pipeline_captioning
    from modeling.errors import ImageError

    def refuse(address, timeout=None):
        raise OSError("no route")

    monkeypatch.setattr(pipeline_captioning, "load_from_address", refuse)
    with pytest.raises(ImageError, match="example.org/x.jpg gives no photograph"):
        photo("https://example.org/x.jpg")
