"""The whole path on untrained models, and what it does with bad folders."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from modeling import ImageError, ModelFolderError, PictaleError, StoryPipeline, StyleError
from tests.tiny import save_tiny_pipeline, tiny_pipeline


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_the_result_has_everything(pipe):
    result = pipe(photo(0), style="romance", seed=1)
    assert len(result.captions) == 3 and result.style == "romance" and result.seed == 1
    assert result.story and result.story.split()[0] in result.candidates[0].text
    assert len(result.candidates) == 3
    assert [c.score for c in result.candidates] == sorted((c.score for c in result.candidates), reverse=True)
    assert set(result.candidates[0].scores) == {"grounding", "likeness", "style", "fluency", "repetition"}
    for caption in result.captions:
        assert caption.attention.shape == (len(caption.words), 2, 2)
        np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, atol=1e-4)
        assert caption.score < 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.story = "another"


def test_a_seed_reproduces_its_story_and_another_does_not(pipe):
    first, again, other = (pipe(photo(0), style="horror", seed=s).story for s in (3, 3, 4))
    assert first == again != other


def test_the_callers_random_state_is_left_alone(pipe):
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pipe(photo(0), seed=1)
    torch.testing.assert_close(torch.rand(3), expected)


def test_without_a_seed_one_is_drawn_and_told(pipe):
    result = pipe(photo(0))
    assert result.style == "romance"  # the first of the pipeline
    assert pipe(photo(0), style=result.style, seed=result.seed).story == result.story


def test_a_list_gives_a_list_equal_to_single_calls(pipe):
    photos = [photo(i) for i in range(3)]
    together = pipe(photos, style="romance", seed=5)
    assert isinstance(together, list) and len(together) == 3
    for result, one in zip(together, photos, strict=True):
        alone = pipe(one, style="romance", seed=5)
        assert [c.text for c in alone.captions] == [c.text for c in result.captions]
        assert alone.story == result.story


def test_scores_and_maps_of_a_list_are_those_of_each_photo(pipe):
    photos = [photo(3), photo(4), photo(5)]
    for together, alone in zip(pipe.caption(photos), [pipe.caption(p)[0] for p in photos], strict=True):
        assert [c.words for c in together] == [c.words for c in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)


def test_streaming_ends_with_the_story_that_tell_gives(pipe):
    captions = pipe.caption(photo(0))[0]
    grown = list(pipe.stream(captions, style="romance", seed=2))
    assert grown[-1] == pipe.tell(captions, style="romance", seed=2).story
    assert all(b.startswith(a) for a, b in zip(grown, grown[1:], strict=False))


def test_a_persons_own_sentence_is_a_caption(pipe):
    result = pipe.tell(["The dog runs on the beach."], style="romance", seed=1)
    assert result.story and set(result.content_words) <= {"dog", "runs", "beach"}


def test_style_strength_and_content_matter(pipe):
    captions = ["the old dog was on the beach."]
    plain = pipe.tell(captions, style="romance", seed=1)
    assert pipe.tell(captions, style="horror", seed=1).story != plain.story
    assert pipe.tell(captions, style="romance", seed=1, strength=-3).story != plain.story
    assert pipe.tell(captions, style="romance", seed=1, content_words=0).content_words == ()


def test_every_kind_of_input_is_the_same_photo(pipe, tmp_path):
    image = photo(1)
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    kinds = [image, tmp_path / "a.png", str(tmp_path / "a.png"), data.getvalue(), np.asarray(image)]
    assert len({pipe.caption(kind)[0][0].text for kind in kinds}) == 1


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda p: p([]), ImageError),
        (lambda p: p("nowhere.jpg", style="romance"), ImageError),
        (lambda p: p(b"not an image", style="romance"), ImageError),
        (lambda p: p(photo(0), style="western"), StyleError),
        (lambda p: p(photo(0), style="romance", seed=-1), PictaleError),
        (lambda p: p(photo(0), style="romance", colour=1), PictaleError),
        (lambda p: p(photo(0), style="romance", candidates=0), PictaleError),
        (lambda p: p(photo(0), style="romance", top_p=0), PictaleError),
        (lambda p: p.tell([" "], style="romance"), PictaleError),
    ],
)
def test_bad_calls_are_one_sentence(pipe, call, error):
    with pytest.raises(error) as caught:
        call(pipe)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_save_load_same_output(tmp_path):
    folder = save_tiny_pipeline(tmp_path)
    first, again = tiny_pipeline(), StoryPipeline.from_pretrained(folder)
    a, b = (p(photo(2), style="romance", seed=9) for p in (first, again))
    assert [c.text for c in a.captions] == [c.text for c in b.captions]
    assert a.story == b.story


def test_bad_folders_are_one_sentence(tmp_path):
    folder = save_tiny_pipeline(tmp_path)

    def message(place=folder):
        with pytest.raises(ModelFolderError) as caught:
            StoryPipeline.from_pretrained(place)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "not a pipeline" in message(tmp_path / "tiny-encoder")
    assert "There is no folder" in message(tmp_path / "nowhere")

    weights = tmp_path / "tiny-decoder" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors is damaged" in message()
    weights.write_bytes(b"not safetensors at all")
    assert "model.safetensors is damaged" in message()
    weights.unlink()
    assert "has no model.safetensors" in message()
    weights.write_bytes(whole)

    style = folder / "styles" / "romance.safetensors"
    style.write_bytes(b"")
    with pytest.raises(StyleError, match="damaged"):
        StoryPipeline.from_pretrained(folder)

    (folder / "pipeline.json").write_text("{")
    assert "damaged" in message()
    (folder / "pipeline.json").write_text(json.dumps({"components": {"captioner": "x"}}))
    assert "names no decoder, encoder" in message()
