"""Plots: the file, which one a photo gets, how stories follow it, how they are built."""

import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling import ModelFolderError, StoryPipeline
from modeling.neighbours import unit_rows
from modeling.plots import DRAWN, PLOTS_FILE, Plots, in_parts, plan
from modeling.text import split_sentences
from tests.tiny import save_tiny_pipeline, tiny_captioner, tiny_embedding, tiny_encoder, tiny_pipeline
from training import build_plots
from training.data_text import Corpus

CAPTIONS = ["The dog sleeps on the beach.", "A cat in the house."]


def made(encoder: str = "abc", count: int = 12, sentences: int = 5, size: int = 24, views: int = 0, seed: int = 0):
    rng = np.random.default_rng(seed)
    seen = None
    if views:
        seen = rng.normal(size=(count, views))
        seen = (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)
    thoughts = rng.normal(0, 0.2, (count, sentences, size)).astype(np.float32)
    anyway = rng.normal(size=count).astype(np.float32)
    return thoughts, Plots.of(thoughts, np.eye(size), encoder, anyway, seen, "joint" if views else "", "a test")


# -- the file --------------------------------------------------------------------------------------------------------
def test_what_was_saved_is_loaded(tmp_path):
    for views in (0, 6):
        _, plots = made(views=views)
        plots.save(tmp_path / "new" / PLOTS_FILE)
        loaded = Plots.load(tmp_path / "new" / PLOTS_FILE)
        for field in dataclasses.fields(Plots):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(plots, field.name))


def test_thoughts_are_kept_to_a_127th_of_their_range():
    thoughts, plots = made()
    for i, exact in enumerate(thoughts):
        assert np.abs(plots.thoughts(i) - exact).max() <= np.abs(thoughts).max() / 127


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / PLOTS_FILE
    made()[1].save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        made(seed=1)[1].save(path)
    assert path.read_bytes() == before


def test_what_is_no_plots_is_said_in_one_sentence(tmp_path):
    path = tmp_path / PLOTS_FILE
    with pytest.raises(ModelFolderError, match=r"no plots .*build_plots"):
        Plots.load(path)
    _, plots = made()
    plots.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelFolderError, match="damaged"):
        Plots.load(path)
    for changes in (
        {"anyway": plots.anyway[:-1]},
        {"scale": plots.scale[:-1]},
        {"scale": plots.scale * np.nan},
        {"components": plots.components[:-1]},
        {"views": np.zeros((3, 2), np.int8)},
    ):
        dataclasses.replace(plots, **changes).save(path)
        with pytest.raises(ModelFolderError, match="damaged"):
            Plots.load(path)
    path.write_bytes(whole.replace(b"pictale-plots", b"pictale-other"))
    with pytest.raises(ModelFolderError, match="no plots of this version"):
        Plots.load(path)


# -- which one -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("views", [0, 6])
def test_the_nearest_are_those_of_the_formula(views):
    thoughts, plots = made(views=views, count=30)
    rng = np.random.default_rng(5)
    about, view = rng.normal(size=24).astype(np.float32), rng.normal(size=6).astype(np.float32)

    def cosines(rows, one):
        return rows @ one / np.linalg.norm(rows, axis=1)

    scores = -0.5 * plots.anyway
    for values in [cosines(thoughts.mean(1), about), *([cosines(plots.views.astype(float), view)] if views else [])]:
        scores = scores + (values - values.mean()) / values.std()
    expected = np.argsort(-scores)
    found = plots.nearest(about, view)
    assert sorted(found.tolist()) == list(range(30))
    assert found[:5].tolist() == expected[:5].tolist()  # further down the rounding may turn neighbours round
    if views:
        assert plots.nearest(about)[:5].tolist() != found[:5].tolist()


def test_a_plot_is_told_in_its_order_and_to_its_end():
    thoughts = np.arange(5.0)[:, None]
    for parts in (2, 3, 5):
        shared = in_parts(thoughts, parts)
        assert len(shared) == parts and np.concatenate(shared).ravel().tolist() == [0, 1, 2, 3, 4]
        assert [len(part) for part in shared] == sorted(len(part) for part in shared)
    assert in_parts(thoughts, 1)[0].ravel().tolist() == [0, 2, 4]
    assert in_parts(thoughts[:2], 1)[0].ravel().tolist() == [0, 1]


def test_a_seed_draws_among_the_nearest_and_a_longer_story_takes_further_ones():
    thoughts, plots = made(count=30)
    about = np.random.default_rng(5).normal(size=24).astype(np.float32)
    order = plots.nearest(about).tolist()

    def drawn(parts, told, seed):
        """The plots followed, told by their last sentences."""
        ends = np.stack([plots.thoughts(i)[-1] for i in range(len(plots))])
        planned = plan(plots, parts, about, None, told, seed)
        assert len(planned) == parts
        return [int(np.abs(ends - part[-1]).sum(1).argmin()) for part in planned[1::2]]

    first = {drawn(2, 0, seed)[0] for seed in range(40)}
    assert first == set(order[:DRAWN])
    assert {drawn(2, 5, seed)[0] for seed in range(40)} == set(order[DRAWN : 2 * DRAWN])
    for seed in range(5):
        np.testing.assert_array_equal(plan(plots, 2, about, None, 0, seed)[1], plan(plots, 2, about, None, 0, seed)[1])
        one, other = drawn(4, 0, seed)
        assert one in order[:DRAWN] and other in order[DRAWN : 2 * DRAWN]
        assert sum(map(len, plan(plots, 2, about, None, 0, seed))) == 5
        assert sum(map(len, plan(plots, 2, about, None, 7, seed))) == 4  # the story has had its opening


# -- stories that follow one -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.plots = made(pipe._fingerprint)[1]
    return pipe


LONG = {"max_new_tokens": 60, "min_new_tokens": 4, "max_sentence_tokens": 10, "candidates": 4}


def test_sentences_are_told_by_the_picture_and_by_the_plot(pipe, monkeypatch):
    told, conditions = [], pipe.decoder.conditions.forward

    def spy(thought, **rest):
        told.append(thought[0].numpy())
        return conditions(thought, **rest)

    monkeypatch.setattr(pipe.decoder.conditions, "forward", spy)
    result = pipe.tell(CAPTIONS, "horror", seed=1, plot=0.6, fading=0.0, focus=0.5, content_words=0, **LONG)
    x = pipe.think(CAPTIONS) - pipe._styles["caption"].vector
    b = pipe.styles["horror"].vector
    parts = plan(pipe.plots, 2, x, None, 0, 1)
    shares = [0.3, 0.6, 0.6, 0.6, 0.6]  # the first sentence is about the photo first of all
    events = [event for part in parts for event in part]
    expected = [b + (1 - p) * 0.5 * x + p * event for p, event in zip(shares, events, strict=True)]
    plain = b + 0.5 * x
    rest = [thought for thought in told if np.abs(thought - plain).max() > 1e-6]  # a passage's own beginning is plain
    assert len(result.choices) >= len(rest) == 5
    np.testing.assert_allclose(rest, expected, atol=1e-6)


def test_a_plot_changes_the_story_and_none_leaves_it(pipe):
    plain = tiny_pipeline()
    options = {"style": "romance", "seed": 3, **LONG}
    without = plain.tell(CAPTIONS, **options)
    assert pipe.tell(CAPTIONS, plot=0.0, **options) == without
    assert pipe.tell(CAPTIONS, **options).story != without.story
    assert plain.tell(CAPTIONS, plot=0.9, **options) == without  # there is none to follow
    old = {"recipe": "neural-storyteller", "beam_width": 2, "style": "romance", "seed": 3}
    assert pipe.tell(CAPTIONS, **old).story == plain.tell(CAPTIONS, **old).story


def test_the_story_ends_with_its_plot(pipe):
    """As many sentences as the plot has, if they are long enough together, although there would be room for more."""
    for seed in range(4):
        result = pipe.tell(CAPTIONS, "horror", seed=seed, **{**LONG, "max_new_tokens": 200})
        assert len(result.choices) == 5
        assert any(len({candidate.scores["plot"] for candidate in choice}) > 1 for choice in result.choices)
        longer = pipe.tell(CAPTIONS, "horror", seed=seed, **{**LONG, "max_new_tokens": 200, "min_new_tokens": 60})
        assert len(longer.choices) > 5
        assert all(c.scores["plot"] == 0 for c in longer.choices[2])  # the plot's first part has two sentences


def test_how_near_a_candidate_is_to_the_plot_decides(pipe):
    """With nothing else to go by the candidate that is nearest to what comes next wins."""
    names = [f.name for f in dataclasses.fields(pipe.options) if f.name.startswith("weight_")]
    weights = {name: 1.0 if name == "weight_plot" else 0.0 for name in names}
    for choice in pipe.tell(CAPTIONS, "horror", seed=2, **weights, **LONG).choices:
        scores = [candidate.scores["plot"] for candidate in choice]
        assert scores[0] == max(scores)


def test_a_continuation_follows_another_plot(pipe):
    story = pipe.start_story(np.zeros((40, 40, 3), np.uint8), "horror", seed=1, **LONG)
    longer = pipe.continue_story(story, seed=1, **LONG)
    assert longer.text.startswith(story.text) and len(split_sentences(longer.text)) > len(split_sentences(story.text))
    assert longer.passages[-1].text != story.passages[-1].text
    told = pipe.continue_story(story, sentence="The night was old.", seed=1, **LONG)
    assert told.passages[-1].text not in (longer.passages[-1].text, "")


def test_a_pipeline_keeps_its_plots(tmp_path):
    folder = save_tiny_pipeline(tmp_path)
    fingerprint = StoryPipeline.from_pretrained(folder)._fingerprint
    made(fingerprint)[1].save(folder / PLOTS_FILE)
    loaded = StoryPipeline.from_pretrained(folder)
    saved = StoryPipeline.from_pretrained(loaded.save_pretrained(tmp_path / "saved"))
    stories = {pipe.tell(CAPTIONS, "horror", seed=1, **LONG).story for pipe in (loaded, saved)}
    assert len(stories) == 1
    for wrong in (made("another")[1], made(fingerprint, size=5)[1]):
        wrong.save(folder / PLOTS_FILE)
        with pytest.raises(ModelFolderError, match="build_plots"):
            StoryPipeline.from_pretrained(folder)


def test_the_photo_chooses_only_where_it_was_seen_by_the_same_embedding(pipe, monkeypatch):
    captioner = tiny_captioner()
    seeing = tiny_pipeline()
    seeing.set_embedding(tiny_embedding(captioner))
    plots = made(seeing._fingerprint, views=6)[1]
    views = []
    monkeypatch.setattr(Plots, "nearest", lambda self, about, view=None: views.append(view) or np.arange(len(self)))
    view = np.ones(6, np.float32)
    for fingerprint in ("another", seeing.embedding.fingerprint()):
        seeing.plots = dataclasses.replace(plots, embedding=fingerprint)
        seeing.tell(CAPTIONS, "horror", seed=1, view=view, weight_picture=0.0, **LONG)
    assert views[0] is None and views[1] is view


# -- building --------------------------------------------------------------------------------------------------------
NOUNS = ("dog", "cat", "lady", "house")


def corpus(count: int = 60) -> Corpus:
    """Stories of five sentences about one of four things; every tenth is held out, every seventh too short."""
    sentences, document, held = [], [], []
    for i in range(count):
        for k in range(4 if i % 7 == 6 else 5):
            sentences.append(
                f"the {NOUNS[i % 4]} of the {('red', 'blue', 'old')[i % 3]} {'night beach'.split()[k % 2]} ."
            )
            document.append(i)
            held.append(i % 10 == 0)
    owner = np.array(document)
    return Corpus(sentences, owner, np.zeros(len(owner), np.int16), np.array(held), ["everyday"])


def words() -> dict[str, int]:
    return {word: i for i, word in enumerate("the of red blue old night beach . dog cat lady house".split())}


def test_stories_that_can_be_plots():
    found = build_plots.stories_of(corpus(), 5, words())
    stories = corpus()
    kept = stories.document[found].tolist()
    assert kept == [i for i in range(60) if i % 7 != 6 and i % 10]
    rare = {**words(), "cat": build_plots.PLAIN_WORDS}
    assert stories.document[build_plots.stories_of(stories, 5, rare)].tolist() == [i for i in kept if i % 4 != 1]
    with pytest.raises(build_plots.DataError, match="exactly 3 sentences"):
        build_plots.stories_of(stories, 3, words())


@pytest.mark.parametrize("seeing", [False, True])
def test_those_are_kept_that_are_photographed(seeing):
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_pipeline().encoder.tokenizer
    captions = [["a dog of the night .", "the dog and the beach ."], ["the dog of the red beach ."], ["old dog ."]] * 3
    embedding = tiny_embedding(tiny_captioner()) if seeing else None
    plots = build_plots.build(corpus(), captions, encoder, words(), embedding, count=8, components=10, source="made up")
    assert len(plots) == 8 and plots.codes.shape == (8, 5, 10) and plots.source == "made up"
    assert (plots.views is not None) == seeing and bool(plots.embedding) == seeing
    again = build_plots.build(corpus(), captions, encoder, words(), embedding, count=8, components=10)
    np.testing.assert_array_equal(plots.codes, again.codes)
    np.testing.assert_allclose(np.abs(plots.components.astype(np.float32) @ plots.components.T), np.eye(10), atol=0.01)
    with pytest.raises(build_plots.DataError, match="two pictures"):
        build_plots.build(corpus(), captions[:1], encoder, words(), embedding)


def test_how_near_a_story_is_anyway():
    rng = np.random.default_rng(0)
    stories = [unit_rows(rng.normal(size=(5, 4)))]
    pictures = [unit_rows(rng.normal(size=(300, 4)))]
    near, anyway = build_plots.nearness(stories, pictures)
    cosines = pictures[0] @ stories[0].T
    for k in range(5):
        column = [(row[k] - row.mean()) / row.std() for row in cosines]
        np.testing.assert_allclose(near[:, k], column, rtol=1e-4, atol=1e-5)
        assert anyway[k] == pytest.approx(np.mean(sorted(column)[-3:]), rel=1e-4)


def test_the_command(tmp_path, capsys, monkeypatch):
    folder = save_tiny_pipeline(tmp_path)
    (tmp_path / "stories").mkdir()
    lines = corpus().sentences
    monkeypatch.setenv("PICTALE_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    rows = [{"source": "made up", "sentences": [lines[int(i)] for i in rng.integers(0, 200, 5)]} for _ in range(80)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "stories" / "data.parquet")
    captions = [{"file": f"{i}.jpg", "caption": f"a {NOUNS[i % 4]} of the beach"} for i in range(8)]
    table = "file,caption\n" + "\n".join(f"{row['file']},{row['caption']}" for row in captions)
    (tmp_path / "captions.csv").write_text(table)
    settings = ["--encoder", str(tmp_path / "tiny-encoder"), "--decoder", str(tmp_path / "tiny-decoder")]
    settings += ["--embedding", "", "--captions", "captions.csv", "--output", str(folder), "--count", "9", "--json"]
    assert build_plots.main(["--stories", "stories", *settings]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plots"] == 9 and report["sentences"] == 5
    assert StoryPipeline.from_pretrained(folder).tell(CAPTIONS, "horror", seed=1, **LONG).story
    assert build_plots.main(["--stories", "nowhere", *settings]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert build_plots.main(["--stories", "stories", *settings, "--count", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_vectors_are_those_of_the_sentences():
    """What is kept of a story is its sentences' thoughts less the mean of all that were looked at."""
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_pipeline().encoder.tokenizer
    captions = [[f"the {noun} ."] for noun in NOUNS]
    stories = corpus()
    starts = build_plots.stories_of(stories, 5, words())
    plots = build_plots.build(stories, captions, encoder, words(), count=1000, components=24)
    exact = np.stack([encoder.encode(stories.sentences[start : start + 5]) for start in starts])
    exact -= exact.mean((0, 1))
    found = np.stack([plots.thoughts(i) for i in range(len(plots))])
    with torch.no_grad():  # bfloat16 where the processor has it, then a byte a component
        assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max() + 0.01
