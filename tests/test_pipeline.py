"""The whole path on untrained models, and what it does with bad folders."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling import ImageError, ModelFolderError, PictaleError, StoryOptions, StoryPipeline, StyleError
from modeling.beam_search import beam_passages
from modeling.story_engine import StoryEngine
from modeling.story_types import _LIMITS, LENGTHS
from modeling.text import clean_text, lyric_lines
from tests.tiny import BOOK, OPTIONS, save_tiny_pipeline, tiny_pipeline, tiny_storyteller

SCORES = {"picture", "words", "style", "likelihood", "repetition"}
PAGE = " ".join(["The old lady of the house said that the dog was in the sea and the cat on the red beach."] * 2)


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_the_result_has_everything(pipe):
    result = pipe(photo(0), style="romance", seed=1)
    assert len(result.captions) == 3 and result.style == "romance" and result.seed == 1
    assert result.title and result.story.startswith(result.candidates[0].text)
    assert result.candidates == result.choices[0] and result.follows == result.sources == ()
    for choice in result.choices:
        assert 1 <= len(choice) <= 3
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
    first, again, other = (pipe(photo(0), style="horror", seed=s) for s in (3, 3, 4))
    assert first == again and first.story != other.story and first.title != other.title


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
        assert (alone.story, alone.title) == (result.story, result.title)


def test_scores_and_maps_of_a_list_are_those_of_each_photo(pipe):
    photos = [photo(3), photo(4), photo(5)]
    for together, alone in zip(pipe.caption(photos), [pipe.caption(p)[0] for p in photos], strict=True):
        assert [c.words for c in together] == [c.words for c in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"lyrics": True}, {"candidates": 1}, {"length": "medium", "temperature": 2.0}])
def test_streaming_grows_into_the_story_that_tell_gives(pipe, options):
    captions = pipe.caption(photo(0), num_beams=3)[0]
    for seed in range(4):
        grown = list(pipe.stream(captions, style="romance", seed=seed, **options))
        assert grown[-1] == pipe.tell(captions, style="romance", seed=seed, **options).story
        assert all(b.startswith(a) for a, b in zip(grown, grown[1:], strict=False))
        assert all(len(b.split()) - len(a.split()) <= 1 for a, b in zip(grown, grown[1:], strict=False))


def test_a_persons_own_sentence_is_a_caption(pipe):
    result = pipe.tell(["The dog runs on the beach."], style="romance", seed=1)
    assert result.story and [c.text for c in result.captions] == ["The dog runs on the beach."]
    shares = {c.scores["words"] for choice in result.choices for c in choice}
    assert shares <= {0, 1 / 3, 2 / 3, 1} and len(shares) > 1  # of dog, runs, beach


def test_style_strength_length_and_captions_matter(pipe):
    captions = ["the old dog was on the beach."]
    plain = pipe.tell(captions, style="romance", seed=1).story
    assert pipe.tell(captions, style="romance", seed=1, strength=1.0).story == plain
    others = [
        pipe.tell(captions, style="horror", seed=1),
        pipe.tell(captions, style="romance:1,horror:1", seed=1),
        pipe.tell(captions, style="romance", seed=1, strength=0),
        pipe.tell(captions, style="romance", seed=1, length="long"),
        pipe.tell(captions, style="romance", seed=1, lyrics=True),
        pipe.tell(["a cat sleeps in the red house."], style="romance", seed=1),
    ]
    assert plain not in [result.story for result in others] and len({result.story for result in others}) == len(others)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_story_is_about_as_long_as_asked(pipe, length):
    least, most = LENGTHS[length]
    for seed in range(3):
        count = len(pipe.tell(["a dog."], style="romance", seed=seed, length=length).story.split())
        assert 0.6 * least <= count <= most + 45  # by a sentence, at most


def test_the_story_is_made_of_the_winners(pipe):
    for seed in range(3):
        result = pipe.tell(["the old dog was on the beach."], style="romance", seed=seed, length="medium")
        assert len(result.choices) > 1
        story, told = ("".join(text.split()) for text in (result.story, "".join(c[0].text for c in result.choices)))
        assert story in (told, told.rstrip(",;:-") + ".")


def test_a_style_of_ones_own_shows_its_pages(pipe):
    style = pipe.make_style(f"{BOOK}\n\n{PAGE}", "mine")
    assert style.pages == (PAGE,)
    fresh = tiny_pipeline()
    fresh.add_style(style)
    fresh.add_style(dataclasses.replace(style, name="bare", pages=(), page_vectors=None))
    with_page, without = (fresh.tell(["A dog."], style=name, seed=1) for name in ("mine", "bare"))
    assert with_page.story != without.story and with_page.follows == ()  # nobody knows which book it is


def test_the_recipe_of_2015_is_the_most_probable_passage_for_the_vector_alone(pipe):
    captions = ["The dog runs on the beach.", "A cat sleeps."]
    plain = {"writer": "neural-storyteller", "beam_width": 4}
    result = pipe.tell(captions, style="horror", seed=1, **plain)
    assert result.title == "" and result.follows == () and len(result.choices) == 1 and len(result.candidates) == 4
    assert pipe.tell(captions, style="horror", seed=2, **plain).story == result.story  # nothing is drawn
    thought = torch.from_numpy(pipe.shift(pipe.think(captions), "horror"))[None]
    found = beam_passages(pipe.decoder, pipe.decoder.conditions(thought), 4, 70, 25)
    for candidate, ids, log_prob in zip(result.candidates, found.sequences, found.log_probs.tolist(), strict=True):
        words = clean_text(pipe.decoder_tokenizer.decode([i for i in ids.tolist() if i > 3]))
        assert words.startswith(candidate.text.rstrip(".")) and candidate.text
        assert candidate.score == candidate.scores["likelihood"] == log_prob
    assert result.story == result.candidates[0].text
    assert pipe.tell(captions, style="horror", writer="neural-storyteller", beam_width=1).story
    assert len(pipe.tell(captions, style="horror", writer="neural-storyteller").candidates) == 50
    assert pipe.tell(captions[:1], style="horror", **plain).candidates != result.candidates  # all k are averaged


def test_the_recipe_of_2015_sees_the_mean_of_all_captions_and_the_style_only(pipe):
    """Neither their order, nor the writer's other options, nor the story so far."""
    captions = ["The dog runs on the beach.", "A cat sleeps.", "An old lady of the house."]
    plain = {"writer": "neural-storyteller", "beam_width": 3, "style": "romance", "seed": 1}
    story = pipe.tell(captions, **plain).story
    assert pipe.tell(captions[::-1], **plain).story == story
    assert pipe.tell(captions, **plain, length="long", temperature=2.0, candidates=1).story == story
    np.testing.assert_allclose(pipe.think(captions), np.mean([pipe.think([c]) for c in captions], 0), atol=1e-6)
    assert pipe.tell(captions, **{**plain, "strength": 3.0}).candidates != pipe.tell(captions, **plain).candidates


def test_the_shift_takes_the_captions_style_away(pipe):
    x = pipe.think(["The dog runs on the beach."])
    c, b = pipe._styles["caption"].vector, pipe.styles["horror"].vector
    np.testing.assert_allclose(pipe.shift(x, "horror", 0.5), x - c + 0.5 * b, atol=1e-6)
    np.testing.assert_allclose(pipe.shift(x, "horror"), x - c + b, atol=1e-6)


def test_lyrics_are_lines(pipe):
    result = pipe.tell(["the old dog was on the beach."], style="romance", seed=3, lyrics=True)
    assert "\n" in result.story and result.story == lyric_lines(" ".join(choice[0].text for choice in result.choices))


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
        (lambda p: p(photo(0), style="romance", beam_width="many"), PictaleError),
        (lambda p: p(photo(0), style="romance", temperature=float("nan")), PictaleError),
        (lambda p: p(photo(0), style="romance", candidates=1.5), PictaleError),
        (lambda p: p(photo(0), style="romance", length="endless"), PictaleError),
        (lambda p: p(photo(0), style="romance", recipe="neural-storyteller"), PictaleError),
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


def test_there_are_few_options():
    assert len(dataclasses.fields(StoryOptions)) <= 20


def test_a_length_is_a_range_of_words():
    assert [StoryOptions(length=name).words for name in ("short", "medium", "long")] == list(LENGTHS.values())
    lengths = list(LENGTHS.values())
    assert all(a < b for a, b in lengths) and lengths == sorted(lengths)


def test_save_load_same_output(tmp_path):
    folder = save_tiny_pipeline(tmp_path)
    first, again = tiny_pipeline(), StoryPipeline.from_pretrained(folder)
    a, b = (p(photo(2), style="romance", seed=9) for p in (first, again))
    assert [c.text for c in a.captions] == [c.text for c in b.captions]
    assert (a.story, a.title) == (b.story, b.title)
    assert again.options == StoryOptions(**OPTIONS)


def test_a_saved_pipeline_has_its_storyteller_and_every_writer(pipe, tmp_path):
    kept = tiny_pipeline()
    kept.add_style(kept.make_style(f"{BOOK}\n\n{PAGE}", "mine"))
    folder = kept.save_pretrained(tmp_path / "whole")
    original = {path.name: path.read_bytes() for path in tiny_storyteller().iterdir()}
    assert {path.name: path.read_bytes() for path in (folder / "storyteller").iterdir()} == original
    again = StoryPipeline.from_pretrained(folder)
    assert again.styles["mine"].pages == (PAGE,)
    for writer in ("storyteller", "neural-storyteller"):
        a, b = (p.tell(["A dog."], style="mine", seed=2, writer=writer, beam_width=3) for p in (kept, again))
        assert (a.story, a.title) == (b.story, b.title)
    assert StoryPipeline.from_pretrained(again.save_pretrained(folder)).has_writer("storyteller")  # over itself


def test_an_engine_that_was_loaded_before_tells_the_same_and_is_saved(tmp_path):
    pipe = tiny_pipeline()
    parts = {name: getattr(pipe, name) for name in ("captioner", "image_processor", "caption_tokenizer", "encoder")}
    engine = StoryEngine.load(tiny_storyteller())
    shared = StoryPipeline(
        **parts,
        encoder_tokenizer=pipe.encoder.tokenizer,
        styles=list(pipe._styles.values()),
        storyteller=engine,
        options=pipe.options,
    )
    result = pipe.tell(["A dog."], style="romance", seed=2)
    assert shared.tell(["A dog."], style="romance", seed=2) == result
    assert not shared.has_writer("neural-storyteller") and shared.has_writer("storyteller")
    again = StoryPipeline.from_pretrained(shared.save_pretrained(tmp_path / "whole"))
    assert again.tell(["A dog."], style="romance", seed=2) == result and not again.has_writer("neural-storyteller")


def test_a_pipeline_without_a_storyteller_says_so(pipe):
    parts = {name: getattr(pipe, name) for name in ("captioner", "image_processor", "caption_tokenizer", "encoder")}
    parts |= {"decoder": pipe.decoder, "decoder_tokenizer": pipe.decoder_tokenizer}
    bare = StoryPipeline(**parts, encoder_tokenizer=pipe.encoder.tokenizer, styles=list(pipe._styles.values()))
    assert not bare.has_writer("storyteller") and bare.has_writer("neural-storyteller")
    with pytest.raises(ModelFolderError, match="has no storyteller"):
        bare.tell(["A dog."], style="romance")
    assert bare.tell(["A dog."], style="romance", writer="neural-storyteller", beam_width=2).story


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
    assert "names no encoder" in message()
