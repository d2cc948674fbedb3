"""The whole path on untrained models, and what it does with bad folders."""

import dataclasses
import io
import json
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from modeling import ImageError, ModelFolderError, PictaleError, StoryOptions, StoryPipeline, StyleError
from modeling.beam_search import beam_passages
from modeling.modeling_story_decoder import StoryConditionOutput
from modeling.reranking import Wish
from modeling.sampling import SamplingOptions
from modeling.story_types import _LIMITS
from modeling.text import clean_text, lyric_lines
from modeling.words import split_words
from modeling.writer import PassageTask
from tests.tiny import BOOK, save_tiny_pipeline, tiny_pipeline

SCORES = {
    "grounding",
    "picture",
    "plot",
    "words",
    "style",
    "fluency",
    "natural",
    "repetition",
    "echo",
    "speech",
    "ending",
    "length",
    "thread",
}


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_the_result_has_everything(pipe):
    result = pipe(photo(0), style="romance", seed=1)
    assert len(result.captions) == 3 and result.style == "romance" and result.seed == 1
    assert result.story and result.story.split()[0] in result.candidates[0].text
    assert result.candidates == result.choices[0]
    for choice in result.choices:
        assert len(choice) == 3
        assert [c.score for c in choice] == sorted((c.score for c in choice), reverse=True)
        for candidate in choice:
            assert set(candidate.scores) == SCORES
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


@pytest.mark.parametrize("options", [{}, {"lyrics": True}, {"choose": "passage"}, {"passages": 4, "temperature": 2.0}])
def test_streaming_grows_into_the_story_that_tell_gives(pipe, options):
    captions = pipe.caption(photo(0), num_beams=3)[0]
    for seed in range(4):
        grown = list(pipe.stream(captions, style="romance", seed=seed, **options))
        assert grown[-1] == pipe.tell(captions, style="romance", seed=seed, **options).story
        assert all(b.startswith(a) for a, b in zip(grown, grown[1:], strict=False))
        assert len(grown) == len(grown[-1].split())


def test_a_persons_own_sentence_is_a_caption(pipe):
    result = pipe.tell(["The dog runs on the beach."], style="romance", seed=1)
    assert result.story and set(result.content_words) <= {"dog", "runs", "beach"}


def test_style_strength_and_content_matter(pipe):
    captions = ["the old dog was on the beach."]
    plain = pipe.tell(captions, style="romance", seed=1)
    assert pipe.tell(captions, style="horror", seed=1).story != plain.story
    assert pipe.tell(captions, style="romance", seed=1, strength=-3).story != plain.story
    assert pipe.tell(captions, style="romance", seed=1, content_words=0).content_words == ()


def test_the_picture_fades_from_the_vector_as_its_words_are_told(pipe):
    """All of what is particular to the photo before any word is told, nothing when all are."""
    writer, b = pipe.writers["decoder"], pipe.styles["romance"].vector
    seen = pipe.think(["the old dog was on the beach."]) - pipe._styles["caption"].vector
    nothing = StoryConditionOutput(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1))
    for fading, before, told, share in (
        (1.0, "", "", 1.0),
        (1.0, "", "A dog.", 0.5),
        (0.5, "", "A dog on the beach.", 0.5),
        (1.0, "A dog on the beach.", "", 0.0),
        (0.0, "A dog on the beach.", "The dog.", 1.0),
    ):
        wish = Wish(seen, b, ("dog", "beach"), before=before)
        task = PassageTask(0.5 * seen + b, wish, None, 1, StoryOptions(fading=fading, focus=0.5))
        decoder = mock.Mock(conditions=mock.Mock(return_value=nothing, style=None), device="cpu")
        with mock.patch.object(writer, "decoder", decoder):
            writer._conditions(task, told)
        thought = decoder.conditions.call_args.kwargs["thought"][0].numpy()
        np.testing.assert_allclose(thought, share * 0.5 * seen + b, atol=1e-6)


def test_the_story_is_made_of_the_winners(pipe):
    """Word for word and in order; only what was left unfinished at the end may be missing."""
    long = {"passages": 1, "max_new_tokens": 60, "min_new_tokens": 40, "max_sentence_tokens": 12, "temperature": 1.5}
    for seed in range(3):
        result = pipe.tell(["the old dog was on the beach."], style="romance", seed=seed, **long)
        assert len(result.choices) > 4
        story = split_words(result.story, lowercase=True)
        winners = split_words(" ".join(choice[0].text for choice in result.choices), lowercase=True)
        story, winners = ([word for word in words if word.isalpha()] for words in (story, winners))
        assert story == winners[: len(story)] and len(story) > 5


def test_more_passages_are_more_text(pipe):
    captions = ["the old dog was on the beach."]
    stories = [pipe.tell(captions, style="romance", seed=1, passages=n).story for n in (1, 2, 4)]
    assert all(b.startswith(a) and len(b) > len(a) for a, b in zip(stories, stories[1:], strict=False))


def test_the_plain_recipe_is_the_most_probable_passage_for_the_vector_alone(pipe):
    captions = ["The dog runs on the beach.", "A cat sleeps."]
    plain = {"recipe": "neural-storyteller", "beam_width": 4}
    result = pipe.tell(captions, style="horror", seed=1, **plain)
    assert result.content_words == () and len(result.choices) == 1 and len(result.candidates) == 4
    assert pipe.tell(captions, style="horror", seed=2, **plain).story == result.story  # nothing is drawn
    thought = torch.from_numpy(pipe.shift(pipe.think(captions), "horror"))[None]
    options = SamplingOptions(max_new_tokens=12, min_new_tokens=4)
    found = beam_passages(pipe.decoder, pipe.decoder.conditions(thought), 4, options)
    ids = [i for i in found.new_ids(0) if i > 3]
    assert result.story == clean_text(pipe.decoder_tokenizer.decode(ids))
    assert pipe.tell(captions, style="horror", recipe="neural-storyteller", beam_width=1).story
    assert len(pipe.tell(captions, style="horror", recipe="neural-storyteller").candidates) == 50
    assert pipe.tell(captions[:1], style="horror", **plain).candidates != result.candidates  # all k are averaged


def test_how_much_of_the_captions_style_is_taken_away(pipe):
    x = pipe.think(["The dog runs on the beach."])
    c, b = pipe._styles["caption"].vector, pipe.styles["horror"].vector
    np.testing.assert_allclose(pipe.shift(x, "horror", 0.5, caption_removal=0), x + 0.5 * b, atol=1e-6)
    np.testing.assert_allclose(pipe.shift(x, "horror"), x - c + b, atol=1e-6)
    stories = {
        r: pipe.tell(["a dog was on the beach."], style="horror", seed=1, caption_removal=r).story for r in (0, 1)
    }
    assert stories[0] != stories[1]


def test_lyrics_are_lines(pipe):
    captions = ["the old dog was on the beach."]
    plain, lyric = (pipe.tell(captions, style="romance", seed=3, lyrics=b).story for b in (False, True))
    assert lyric == lyric_lines(plain) != plain


def test_a_passage_from_a_vector_alone(pipe):
    thought = pipe.shift(pipe.think(["The dog runs on the beach."]), "horror")
    written = pipe.write(thought, ["dog", "unheard"], seed=1, style=pipe.styles["horror"].vector)
    assert written.text and written.choices[0][0].scores["style"] > 0
    assert pipe.write(thought, ["dog"], seed=1, style=pipe.styles["horror"].vector) == written
    assert pipe.write(thought, previous=thought, seed=1).text != pipe.write(thought, seed=1).text


def test_a_style_of_ones_own(pipe, tmp_path):
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
    told = []
    style = pipe.make_style(tmp_path / "book.txt", "mine", progress=lambda share, what: told.append(what))
    assert told and style.source == "book.txt" and style.passages == 25
    np.testing.assert_array_equal(style.vector, pipe.make_style(BOOK, "mine").vector)
    fresh = tiny_pipeline()
    assert "mine" not in fresh.styles
    fresh.add_style(style)
    assert fresh.tell(["A dog."], style="mine:0.5,romance:0.5", seed=1).style == "mine:0.5,romance:0.5"
    with pytest.raises(StyleError, match="caption"):
        fresh.add_style(dataclasses.replace(style, name="caption"))
    with pytest.raises(StyleError, match="at least 20"):
        fresh.make_style("Too short.", "short")


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
        (lambda p: p(photo(0), style="romance", max_new_tokens="many"), PictaleError),
        (lambda p: p(photo(0), style="romance", temperature=float("nan")), PictaleError),
        (lambda p: p(photo(0), style="romance", passages=1.5), PictaleError),
        (lambda p: p(photo(0), style="romance", recipe="cake"), PictaleError),
        (lambda p: p(photo(0), style="romance", choose="word"), PictaleError),
        (lambda p: p(photo(0), style="romance", weight_style=1e9), PictaleError),
        (lambda p: p.tell([" "], style="romance"), PictaleError),
    ],
)
def test_bad_calls_are_one_sentence(pipe, call, error):
    with pytest.raises(error) as caught:
        call(pipe)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_every_number_among_the_options_has_limits():
    for option in dataclasses.fields(StoryOptions):
        if option.type in ("int", "float"):
            assert option.name in _LIMITS or option.name.startswith("weight_")
            with pytest.raises(PictaleError, match=f"{option.name} must be a (whole )?number from"):
                StoryOptions(**{option.name: 1e15})
            with pytest.raises(PictaleError, match=option.name):
                StoryOptions(**{option.name: True})


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
