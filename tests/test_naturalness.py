"""People's sentences are told from the decoder's: the direction, its file, its training, its place in the pipeline."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch

from modeling import ModelFolderError, StoryOptions, StoryPipeline
from modeling.modeling_story_decoder import GRUState
from modeling.naturalness import NATURALNESS_FILE, Naturalness
from modeling.reranking import Proposal, Ranking, Wish
from modeling.sampling import SamplingOptions, begin
from modeling.tokenization import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from modeling.writer_decoder import sentence_marks
from tests.conftest import REPOSITORY
from tests.tiny import save_tiny_pipeline, tiny_decoder, tiny_encoder, tiny_styles, tiny_tokenizer
from training import train_naturalness
from training.recipes import read_recipe
from training.tiny_text import write_tiny_text
from training.train_naturalness import Pairs, Place, fit, go_on, told_apart
from training.train_skip_thoughts import SkipThoughtsRecipe
from training.train_skip_thoughts import run as train_encoder
from training.train_story_decoder import StoryRecipe
from training.train_story_decoder import run as train_decoder

TOKENIZER = tiny_tokenizer()
learns = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is missing (training/requirements.txt)"
)


def natural(encoder: str = "abc", size: int = 24) -> Naturalness:
    return Naturalness(np.arange(size, dtype=np.float32), -0.5, encoder, "a test")


# -- the file --------------------------------------------------------------------------------------------------------
def test_what_was_saved_is_loaded(tmp_path):
    natural().save(tmp_path / "new" / NATURALNESS_FILE)
    loaded = Naturalness.load(tmp_path / "new" / NATURALNESS_FILE)
    assert (loaded.encoder, loaded.bias, loaded.source) == ("abc", -0.5, "a test")
    vectors = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    np.testing.assert_array_equal(loaded(vectors), natural()(vectors))


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / NATURALNESS_FILE
    natural().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        natural("def").save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "infinite"])
def test_a_bad_file_is_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / NATURALNESS_FILE
    if damage == "other":
        tiny_styles(tiny_encoder())[0].save(path)
    elif damage == "infinite":
        Naturalness(np.full(24, np.inf, np.float32), 0.0, "abc").save(path)
    elif damage == "cut":
        natural().save(path)
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ModelFolderError, match="train_naturalness") as error:
        Naturalness.load(path)
    assert "\n" not in str(error.value)


# -- learning --------------------------------------------------------------------------------------------------------
def cloud(count: int, shift: float, seed: int = 0) -> Pairs:
    """Pairs that differ by `shift` in the first of 24 numbers, some of which hardly vary."""
    rng = np.random.default_rng(seed)
    people, decoder = rng.normal(size=(2, count, 24)) * np.geomspace(1, 1e-2, 24)
    people[:, 0] += shift
    return Pairs(people.astype(np.float32), decoder.astype(np.float32), ("a", "b") * (count // 2))


@learns
def test_what_differs_is_learned():
    weight, bias = fit(cloud(400, 4.0), 1.0)
    learned = Naturalness(weight, bias, "abc")
    held = cloud(400, 4.0, seed=1)
    assert told_apart(learned, held)["all"] > 0.98
    assert (
        (learned(held.people) > 0).mean() > 0.9 > 0.1 > (learned(held.decoder) > 0).mean()
    )  # log-odds, not only order


@learns
def test_what_does_not_differ_is_not_learned():
    learned = Naturalness(*fit(cloud(400, 0.0), 0.003), "abc")
    shares = told_apart(learned, cloud(1000, 0.0, seed=1))
    assert set(shares) == {"all", "a", "b"} and shares["all"] == pytest.approx(0.5, abs=0.06)


def place(context: list[int], seed: int) -> Place:
    rng = np.random.default_rng(seed)
    vectors = {name: rng.normal(size=24).astype(np.float32) for name in ("thought", "previous", "style")}
    row = {"ids": [EOS_ID], "content": [PAD_ID], "sentences": [0], "thoughts": vectors.pop("thought")[None], **vectors}
    return Place(row, context, [5], "a")


def write(places, decoder, temperature=1.0, top_k=100):
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=1.0)
    marks = sentence_marks(TOKENIZER.get_vocab())
    penalty = torch.zeros(len(TOKENIZER))
    return list(go_on(decoder, places, options, marks, penalty, torch.Generator().manual_seed(0)))


def test_sentences_end_where_sentences_end_and_have_no_unknown_words():
    places = [place([6, 7, 8][: i % 4], i) for i in range(60)]
    written = write(places, tiny_decoder(style_size=4))
    assert 0 < len(written) <= 60 and len({id(p) for p, _ in written}) == len(written)
    stops = {TOKENIZER.get_vocab()[mark] for mark in (".", "!")}
    for _, ids in written:
        assert ids[-1] in stops or ids[-2] in stops  # the closing mark may follow
        assert not {PAD_ID, BOS_ID, EOS_ID, UNK_ID} & set(ids)


def test_places_written_together_are_written_as_alone():
    """With one word to choose from nothing is left to chance, so that batching must not change a word."""
    decoder = tiny_decoder(style_size=4)
    places = [place([6, 9, 8, 7][: i % 5], i) for i in range(30)]
    together = {id(p): ids for p, ids in write(places, decoder, top_k=1)}
    assert 5 <= len(together) < len(places)
    for one in places:
        assert together.get(id(one)) == dict((id(p), ids) for p, ids in write([one], decoder, top_k=1)).get(id(one))


def test_a_place_is_told_to_the_decoder_as_a_draft_is():
    """The first word after a context is the one that the pipeline's own way of reading it gives."""
    decoder, compared = tiny_decoder(seed=1, style_size=4), 0
    for one, written in write([place([6, 9, 8], i) for i in range(60)], decoder, top_k=1):
        told = {name: torch.from_numpy(one.row[name])[None] for name in ("thoughts", "style", "previous")}
        told["thought"], told["previous_thought"] = told.pop("thoughts"), told.pop("previous")
        conditions = decoder.conditions(**told, content_ids=torch.tensor([[PAD_ID]]))
        draft = begin(decoder, conditions, one.context)
        state = GRUState(draft.state)
        output = decoder(decoder_input_ids=draft.ids[None, -1:], encoder_outputs=conditions, cache=state)
        logits = output.logits[0, -1].clone()
        logits[[PAD_ID, BOS_ID, UNK_ID, EOS_ID]] = -torch.inf
        assert written[0] == int(logits.argmax())
        compared += 1
    assert compared


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny models, trained for a moment, and where their text is."""
    folder = tmp_path_factory.mktemp("natural")
    write_tiny_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICTALE_DATA", str(folder))
        steps = "training.max_steps=40"
        path = REPOSITORY / "hub_configs" / "tiny-skip-thoughts" / "recipe.json"
        train_encoder(read_recipe(path, SkipThoughtsRecipe, [steps, f"training.output_dir={folder / 'encoder'}"]))
        changes = [steps, f"data.encoder={folder / 'encoder' / 'best'}", f"training.output_dir={folder / 'decoder'}"]
        path = REPOSITORY / "hub_configs" / "tiny-story-decoder" / "recipe.json"
        train_decoder(read_recipe(path, StoryRecipe, changes))
        yield folder, path


@learns
def test_the_script_learns_saves_and_reports(trained, tmp_path, capsys):
    folder, recipe = trained
    change = ["--set", f"data.encoder={folder / 'encoder' / 'best'}"]
    arguments = [str(recipe), "--decoder", str(folder / "decoder" / "best"), "--output", str(tmp_path), *change]
    assert train_naturalness.main([*arguments, "--places", "400"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] >= 10 and report["held_out_pairs"] > 0
    assert all(0 <= report[name]["all"] <= 1 for name in ("as told", "as believed"))
    loaded = Naturalness.load(tmp_path / NATURALNESS_FILE)
    assert loaded.weight.shape == (48,) and str(report["pairs"]) in loaded.source

    assert train_naturalness.main([*arguments, "--places", "0"]) == 1
    assert train_naturalness.main([*arguments[:1], "--decoder", "nowhere", *arguments[3:]]) == 1
    error = capsys.readouterr().err
    assert "--places" in error and "Traceback" not in error


# -- in the pipeline -------------------------------------------------------------------------------------------------
def test_candidates_are_ranked_by_it():
    encoder = tiny_encoder()
    encoder.tokenizer = TOKENIZER
    styles = np.stack([style.vector for style in tiny_styles(encoder)])
    texts = ["A dog sleeps. The cat runs.", "The old lady said no.", "The red house."]
    vectors = encoder.encode(["A dog sleeps.", "The cat runs.", *texts[1:]])
    direction = natural()
    odds = direction(vectors)

    def rank(naturalness, weight):
        others = {f"weight_{name}": 0.0 for name in ("grounding", "words", "style", "fluency", "repetition", "echo")}
        others |= {f"weight_{name}": 0.0 for name in ("speech", "ending", "length", "thread")}
        options = StoryOptions(weight_natural=weight, **others)
        wish = Wish(np.ones(24, np.float32), styles[1])
        ranking = Ranking(encoder, styles, styles[0], TOKENIZER.get_vocab(), wish, options, naturalness)
        return ranking.score([Proposal(text, -2.0, True) for text in texts])

    found = rank(direction, 1.0)
    assert [c.scores["natural"] for c in found] == pytest.approx([odds[:2].mean(), odds[2], odds[3]], rel=1e-4)
    best = int(np.argmax([c.scores["natural"] for c in found]))
    assert int(np.argmax([c.score for c in found])) == best
    assert int(np.argmin([c.score for c in rank(direction, -1.0)])) == best
    assert [c.score for c in rank(None, 1.0)] == [0, 0, 0]


def test_a_pipeline_keeps_it_and_does_without(tmp_path):
    folder = save_tiny_pipeline(tmp_path)
    without = StoryPipeline.from_pretrained(folder)
    assert without.naturalness is None
    plain = without.tell(["A dog sleeps."], seed=1)
    assert {c.scores["natural"] for c in plain.candidates} == {0.0}

    natural(without._fingerprint).save(folder / NATURALNESS_FILE)
    with_it = StoryPipeline.from_pretrained(folder)
    saved = StoryPipeline.from_pretrained(with_it.save_pretrained(tmp_path / "saved"))
    for pipe in (with_it, saved):
        np.testing.assert_array_equal(pipe.naturalness.weight, natural().weight)
        assert len({c.scores["natural"] for c in pipe.tell(["A dog sleeps."], seed=1).candidates}) > 1


@pytest.mark.parametrize("wrong", [natural("another"), natural("right", size=5)])
def test_one_of_another_encoder_is_refused(tmp_path, wrong):
    folder = save_tiny_pipeline(tmp_path)
    fingerprint = StoryPipeline.from_pretrained(folder)._fingerprint
    name = fingerprint if wrong.encoder == "right" else wrong.encoder
    Naturalness(wrong.weight, wrong.bias, name).save(folder / NATURALNESS_FILE)
    with pytest.raises(ModelFolderError, match="train_naturalness"):
        StoryPipeline.from_pretrained(folder)
