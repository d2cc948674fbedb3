"""The tiny preset of the text models, through the real scripts: train, save, reload, resume."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling import (
    DataError,
    PictaleSkipThoughtsEncoder,
    PictaleSkipThoughtsForPreTraining,
    PictaleStoryDecoderForConditionalGeneration,
    RecipeError,
)
from modeling.tokenization import count_words
from tests.conftest import REPOSITORY
from tests.tiny import tiny_decoder, tiny_encoder, tiny_tokenizer
from training import train_skip_thoughts, train_story_decoder
from training.data_text import Corpus, LengthBatches, TextSource, Truecaser, load_corpus, tokenize_corpus
from training.figures import measurement
from training.recipes import read_recipe
from training.text_styles import Surroundings
from training.tiny_text import write_tiny_text


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    write_tiny_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICTALE_DATA", str(folder))
        yield folder


def skip_recipe(output, *changes):
    path = REPOSITORY / "hub_configs" / "tiny-skip-thoughts" / "recipe.json"
    changes = [f"training.output_dir={output}", *changes]
    return read_recipe(path, train_skip_thoughts.SkipThoughtsRecipe, changes)


def story_recipe(output, encoder, *changes):
    path = REPOSITORY / "hub_configs" / "tiny-story-decoder" / "recipe.json"
    changes = [f"training.output_dir={output}", f"data.encoder={encoder}", *changes]
    return read_recipe(path, train_story_decoder.StoryRecipe, changes)


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "grad_norm" in line}


@pytest.fixture(scope="module")
def trained_encoder(workshop):
    output = workshop / "skip"
    result = train_skip_thoughts.run(skip_recipe(output))
    assert result.steps == 150 and result.stopped_by == "max_steps"
    return output


@pytest.fixture(scope="module")
def trained_decoder(workshop, trained_encoder):
    output = workshop / "story"
    train_story_decoder.run(story_recipe(output, trained_encoder / "best"))
    return output


def test_skip_thoughts_learn_and_load(trained_encoder):
    curve = losses(trained_encoder)
    assert curve[150] < 0.6 * curve[10]
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(trained_encoder / "best")
    assert encoder.encode(["Anna walked in the garden."]).shape == (1, 48)


def test_story_decoder_learns_loads_and_writes(trained_decoder):
    curve = losses(trained_decoder)
    assert curve[150] < 0.6 * curve[10]
    model = PictaleStoryDecoderForConditionalGeneration.from_pretrained(trained_decoder / "best").eval()
    out = model.generate(torch.zeros(1, 48), do_sample=False, max_new_tokens=10)
    assert not torch.isin(out[:, 1:], torch.tensor([1, 3])).any()


def test_evaluation_weighs_every_word_the_same_and_changes_nothing(
    workshop, trained_encoder, trained_decoder, tmp_path, monkeypatch, capsys
):
    recipe = story_recipe(tmp_path / "out", trained_encoder / "best", f"initial={trained_decoder / 'best'}")
    figures = train_story_decoder.run(recipe, evaluate_only=True)
    perplexities = [v for k, v in figures.items() if k.startswith("perplexity_")]
    assert figures["loss"] == pytest.approx(np.log(perplexities).mean())
    assert not (tmp_path / "out" / "best").exists()
    settings = [f"training.output_dir={trained_decoder}", f"data.encoder={trained_encoder / 'best'}"]  # where a run was
    settings.append(f"initial={trained_decoder / 'best'}")
    changes = [word for setting in settings for word in ("--set", setting)]
    path = str(REPOSITORY / "hub_configs" / "tiny-story-decoder" / "recipe.json")
    monkeypatch.setattr(sys, "argv", ["train_story_decoder", path, "--evaluate-only", *changes])
    capsys.readouterr()
    train_story_decoder.main()
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in figures} == figures
    one = measurement(report, "0" * 16, "my-decoder")
    assert set(one["rows"]["this model"]) == {name for name in figures if name.startswith("perplexity_")}
    assert one["data"].startswith("tiny-")
    assert "initial=my-decoder" in one["command"] and str(tmp_path.parent) not in one["command"]
    logged = [json.loads(line) for line in (trained_decoder / "log.jsonl").read_text().splitlines()]
    assert figures["loss"] == pytest.approx(min(r["loss"] for r in logged if "evaluation_s" in r), abs=1e-3)


def make_passages(**settings):
    """Three documents of four sentences, direct speech in each but the last; vectors that tell the sentences apart."""
    sentences = ["the dog sleeps .", "the old dog ran .", "“ no ! ” said the dog .", "a cat ran ."] * 2 + [
        "a cat ran ."
    ] * 4
    tokenizer = tiny_tokenizer()
    corpus = Corpus(sentences, np.arange(12) // 4, np.zeros(12, np.int16), np.zeros(12, bool), ["horror"])
    data = train_story_decoder.StoryData([], min_tokens=1, max_tokens=40, max_unknown=1.0, **settings)
    store = tokenize_corpus(sentences, tokenizer, progress=False)
    passages = train_story_decoder.Passages(corpus, store, np.eye(12, dtype=np.float32), data, tokenizer)
    passages.cut(corpus.runs(held_out=False), seed=0)
    return passages


def test_passages_with_speech_are_left_out():
    spoken = {2, 6}
    spans = [set(range(a, b)) for a, b, _ in make_passages().spans]
    quiet = [set(range(a, b)) for a, b, _ in make_passages(speech=0.0).spans]
    assert any(span & spoken for span in spans)
    assert quiet == [span for span in spans if not span & spoken]


def test_a_passage_may_be_told_by_one_of_its_sentences():
    for share, told in ((0.0, False), (1.0, True)):
        passages = make_passages(one_sentence=share, min_pull=1.0)
        long = [i for i, (a, b, _) in enumerate(passages.spans) if b - a > 1]
        assert long
        for i in long:
            (start, stop, _), thought = passages.spans[i], passages[i]["thoughts"][0]
            assert (thought.max() == 1) == told
            assert not thought[:start].any() and not thought[stop:].any()


def test_thoughts_are_told_with_noise_that_the_seed_decides():
    plain = make_passages(by_sentence=1.0, min_pull=1.0)
    noisy, again = (make_passages(by_sentence=1.0, min_pull=1.0, noise=0.5) for _ in range(2))
    lengths = []
    for i in range(len(plain)):
        added = noisy[i]["thoughts"] - plain[i]["thoughts"]
        assert np.allclose(added, added[0], atol=1e-6) and noisy[i]["thoughts"].dtype == np.float32
        assert np.array_equal(noisy[i]["thoughts"], again[i]["thoughts"])
        lengths.append(float(np.linalg.norm(added[0])))
    assert 0 < np.mean(lengths) < 0.5 and len(set(lengths)) == len(lengths)


def test_passages_told_sentence_by_sentence():
    plain, passages = make_passages(min_pull=1.0), make_passages(by_sentence=1.0, min_pull=1.0)
    assert passages.spans.tolist() == plain.spans.tolist()
    seen = 0
    for i, (start, stop, _) in enumerate(passages.spans.tolist()):
        row, lengths = passages[i], passages.store.lengths[start:stop]
        owner = np.repeat(np.arange(stop - start), lengths).tolist()
        assert row["thoughts"].shape == (stop - start, 12) and row["sentences"] == [*owner, owner[-1]]
        assert plain[i]["thoughts"].shape == (1, 12) and set(plain[i]["sentences"]) == {0}
        assert len(plain[i]["sentences"]) == len(plain[i]["ids"]) == len(row["ids"])
        for k, thought in enumerate(row["thoughts"]):  # half or more its own, the rest of the whole passage
            assert thought.argmax() == start + k and (stop - start == 1 or 0.5 <= thought[start + k] < 1)
            assert thought.sum() == pytest.approx(1, abs=1e-5)
        seen += stop - start > 1
    assert seen
    rows = [passages[i] for i in range(len(passages))] + [plain[0]]
    model = tiny_decoder()
    model.conditions.projection = torch.nn.Linear(2 * 12 + 16, 12)  # of these vectors
    model.conditions.thought_scale = 1.0

    def loss(part):
        batch = train_story_decoder.collate(part)
        return model(**batch).loss.item(), int(batch["labels"].ne(-100).sum())

    singles = [loss([row]) for row in rows]
    together, words = loss(rows)
    assert words == sum(count for _, count in singles)
    assert together == pytest.approx(sum(value * count for value, count in singles) / words, rel=1e-5)


def test_a_decoder_moves_to_another_encoder_with_what_it_knows():
    known = tiny_decoder()
    ids = torch.randint(4, len(tiny_tokenizer()), (3, 7), generator=torch.Generator().manual_seed(1))
    words = torch.tensor([[5, 9], [6, 0], [0, 0]])
    moved = train_story_decoder.for_new_encoder(known, 40).eval()
    told = moved(decoder_input_ids=ids, thought=torch.randn(3, 40), content_ids=words).logits
    alone = known(decoder_input_ids=ids, thought=torch.zeros(3, 24), content_ids=words).logits
    torch.testing.assert_close(told, alone)
    moved(labels=ids, decoder_input_ids=ids, thought=torch.randn(3, 40), content_ids=words).loss.backward()
    assert moved.conditions.projection.weight.grad[:, :40].abs().sum() > 0


def test_a_decoder_that_learns_to_be_told_styles_begins_as_it_was():
    known = tiny_decoder()
    ids = torch.randint(4, len(tiny_tokenizer()), (3, 7), generator=torch.Generator().manual_seed(1))
    told = {"decoder_input_ids": ids, "thought": torch.randn(3, 24)}
    styled = train_story_decoder.for_styles(known, 5).eval()
    torch.testing.assert_close(styled(**told, style=torch.randn(3, 24)).logits, known(**told).logits)
    styled(labels=ids, **told, style=torch.randn(3, 24)).loss.backward()
    assert styled.conditions.style.widen.weight.grad.abs().sum() > 0
    with pytest.raises(RecipeError, match="told styles already"):
        train_story_decoder.for_styles(styled, 5)
    moved = train_story_decoder.for_new_encoder(styled, 40)  # whose styles are other vectors
    assert moved.config.style_size == 0 and moved.conditions.style is None


def test_a_training_passage_is_told_the_style_of_its_genre_or_of_the_text_around_it():
    rng = np.random.default_rng(0)
    corpus = Corpus([""] * 40, np.arange(40), np.repeat([0, 1], 20), np.arange(40) % 20 >= 15, ["a", "b"])
    vectors = rng.normal(size=(40, 6)).astype(np.float16)
    around = Surroundings(corpus, vectors, block=4, widest=4)
    for sentence, part in ((0, range(0, 15)), (14, range(0, 15)), (17, range(15, 20)), (33, range(20, 35))):
        blocks = [list(part)[i : i + 4] for i in range(0, len(part), 4)]
        here = next(i for i, block in enumerate(blocks) if sentence in block)
        allowed = [
            vectors[sum(blocks[i:j], [])].astype(np.float32).mean(0)
            for i in range(here + 1)
            for j in range(here + 1, len(blocks) + 1)
        ]
        found = [around.style(sentence, rng) for _ in range(30)]
        assert all(min(np.abs(style - other).max() for other in allowed) < 1e-3 for style in found)
        assert len({style.tobytes() for style in found}) > 1


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_an_uninterrupted_one(workshop, trained_encoder, tmp_path, ema):
    changes = [f"training.ema_decay={ema}", "model.dropout=0.2", "training.schedule=constant", "training.max_steps=40"]
    changes += ["training.evaluate_every=10", "training.save_every=15", "training.log_every=5"]
    encoder = trained_encoder / "best"
    train_story_decoder.run(story_recipe(tmp_path / "whole", encoder, *changes))
    train_story_decoder.run(story_recipe(tmp_path / "cut", encoder, *changes, "training.max_steps=15"))
    train_story_decoder.run(story_recipe(tmp_path / "cut", encoder, *changes), resume=True)
    whole, cut = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=0, atol=1e-6)


def test_workers_that_prepare_batches_change_nothing(workshop, trained_encoder, tmp_path):
    changes = ["training.schedule=constant", "training.max_steps=20", "training.evaluate_every=20", "data.noise=0.5"]
    encoder = trained_encoder / "best"
    train_story_decoder.run(story_recipe(tmp_path / "alone", encoder, *changes))
    train_story_decoder.run(story_recipe(tmp_path / "helped", encoder, *changes, "data.workers=2"))
    alone, helped = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("alone", "helped"))
    for name in alone:
        torch.testing.assert_close(alone[name], helped[name], rtol=0, atol=1e-6)


def test_a_decoder_that_went_on_from_another_is_resumed(trained_encoder, trained_decoder, tmp_path):
    changes = [f"initial={trained_decoder / 'best'}", "training.evaluate_every=2", "training.save_every=2"]
    recipe = partial(story_recipe, tmp_path / "out", trained_encoder / "best", *changes)
    train_story_decoder.run(recipe("training.max_steps=2"))
    assert train_story_decoder.run(recipe("training.max_steps=4"), resume=True).steps == 4


STREAMED = ["data.streaming=true", "data.buffer_sentences=150", "data.held_out_every=5", "data.batch_tokens=300"]


def test_a_killed_run_goes_on_exactly_where_its_stream_was(workshop, tmp_path):
    changes = [*STREAMED, "model.dropout=0.2", "training.schedule=constant", "training.max_steps=60"]
    changes += ["training.evaluate_every=30", "training.save_every=15", "training.log_every=1"]
    train_skip_thoughts.run(skip_recipe(tmp_path / "whole", *changes))
    recipe = str(REPOSITORY / "hub_configs" / "tiny-skip-thoughts" / "recipe.json")
    settings = [part for c in (*changes, f"training.output_dir={tmp_path / 'cut'}") for part in ("--set", c)]
    program = f"""
import os, signal, sys
from training import loop, train_skip_thoughts
set_rates = loop.Trainer.set_rates
def dying(self):
    if self.progress.step == 52:  # seven steps after a checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    set_rates(self)
loop.Trainer.set_rates = dying
sys.argv = ["train_skip_thoughts", {recipe!r}, *{settings!r}]
train_skip_thoughts.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    dead = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-2000:]
    assert json.loads((tmp_path / "cut" / "progress.json").read_text())["step"] == 45
    train_skip_thoughts.run(skip_recipe(tmp_path / "cut", *changes), resume=True)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    whole, cut = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("whole", "cut"))
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=0, atol=1e-6)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-2]["epoch"] >= 1  # more than one pass of the stream
    assert all("previous_perplexity" in line for line in log if "evaluation_s" in line)


def test_streaming_wants_to_know_when_to_stop(workshop, tmp_path):
    recipe = skip_recipe(tmp_path / "run", *STREAMED, "training.max_steps=null")
    with pytest.raises(RecipeError, match="set training.max_steps"):
        train_skip_thoughts.run(recipe)
    with pytest.raises(DataError, match="lower data.held_out_every"):
        train_skip_thoughts.run(skip_recipe(tmp_path / "none", *STREAMED, "data.held_out_every=100000"))


def test_a_byte_pair_vocabulary_and_a_plain_output_layer_learn(workshop, tmp_path):
    changes = ["data.vocabulary=bpe", "data.vocab_size=90", "model.output_layer=plain", "training.max_steps=60"]
    output = tmp_path / "run"
    train_skip_thoughts.run(skip_recipe(output, *changes, "training.log_every=20", "training.evaluate_every=60"))
    curve = losses(output)
    assert curve[60] < 0.8 * curve[20]
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(output / "best")
    assert len(encoder.tokenizer) == 90 and encoder.tokenizer.unk_token_id not in encoder.tokenizer("Anna").input_ids
    assert encoder.encode(["Anna walked in the garden."]).shape == (1, 48)
    assert not (output / "best" / "word_counts.txt").exists()
    with pytest.raises(RecipeError, match="words or bpe"):
        train_skip_thoughts.run(skip_recipe(tmp_path / "other", "data.vocabulary=letters"))


def test_word_counts_are_kept_beside_the_tokenizer(workshop, trained_encoder):
    corpus = load_corpus([TextSource("tiny-books"), TextSource("tiny-captions")])
    texts = [s for s, held in zip(corpus.sentences, corpus.held_out, strict=True) if not held]
    lines = (trained_encoder / "tokenizer" / "word_counts.txt").read_text().splitlines()
    counts = {word: int(count) for word, count in (line.split("\t") for line in lines)}
    every = count_words(texts, lowercase=True)
    tokenizer = PictaleSkipThoughtsEncoder.from_pretrained(trained_encoder / "best").tokenizer
    assert [*counts][1:] == tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))
    assert all(every[word] == count for word, count in counts.items() if word != "<unk>")
    assert sum(counts.values()) == every.total()
    assert (trained_encoder / "best" / "word_counts.txt").read_text().splitlines() == lines


def test_held_out_perplexity_weighs_every_word_the_same(trained_encoder):
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder(contrastive_weight=0.5).config).eval()
    rows = [([1, 5, 2], [1, 6, 7, 8, 2], [1, 2]), ([1, 9, 9, 2], [1, 4, 2], [1, 5, 6, 2]), ([1, 7, 2],) * 3]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=train_skip_thoughts.collate)
    model.encoder.tokenizer = tiny_tokenizer()
    with torch.no_grad():
        figures = train_skip_thoughts.make_evaluate(loader, ["a dog", "she said"], tiny_tokenizer())(model)
        each = [model(**train_skip_thoughts.collate([row])) for row in rows]
    for name, column in (("previous", 1), ("next", 2)):
        words = [len(row[column]) - 1 for row in rows]
        nll = sum(n * float(getattr(out, f"{name}_loss")) for n, out in zip(words, each, strict=True)) / sum(words)
        assert figures[f"{name}_perplexity"] == pytest.approx(np.exp(nll), rel=1e-5)


def test_another_run_is_not_overwritten(trained_encoder):
    with pytest.raises(RecipeError, match="--resume"):
        train_skip_thoughts.run(skip_recipe(trained_encoder))


def test_resuming_nothing_says_so(workshop, tmp_path):
    with pytest.raises(RecipeError, match="Nothing to resume"):
        train_skip_thoughts.run(skip_recipe(tmp_path / "new"), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.learnign_rate=1", "unknown key 'learnign_rate'"),
        ("training.schedule=wavy", "schedule is cosine"),
        ("nonsense", "section.key=value"),
    ],
)
def test_a_bad_recipe_is_one_sentence(change, message):
    with pytest.raises(RecipeError, match=message):
        skip_recipe("out", change)


def test_missing_data_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="PICTALE_DATA"):
        load_corpus([TextSource(str(tmp_path / "nowhere"))])


def test_documents_are_never_crossed_and_books_are_held_out_whole(workshop):
    corpus = load_corpus([TextSource("tiny-books"), TextSource("tiny-captions")])
    triples = train_skip_thoughts.SentenceTriples(
        tokenize_corpus(corpus.sentences, _tokenizer(corpus)), corpus.runs(held_out=False), 40
    )
    for centre in triples.centres:
        assert corpus.document[centre - 1] == corpus.document[centre] == corpus.document[centre + 1]
    romance = corpus.genres.index("romance")
    assert corpus.held_out[corpus.genre == romance].any() and not corpus.held_out[corpus.genre == romance].all()
    assert not any("CHAPTER" in sentence for sentence in corpus.sentences)
    assert any(sentence.startswith("“Where are you?”") for sentence in corpus.sentences)


def test_the_corpus_cache_gives_the_same_corpus(workshop, tmp_path):
    sources = [TextSource("tiny-books", limit=2)]
    first = load_corpus(sources, str(tmp_path))
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    again = load_corpus(sources, str(tmp_path))
    assert again.sentences == first.sentences and again.genres == first.genres
    np.testing.assert_array_equal(again.document, first.document)
    np.testing.assert_array_equal(again.held_out, first.held_out)


def test_text_files_are_books(tmp_path):
    (tmp_path / "a.txt").write_text("It rained. He left.\n\n* * *\n\nShe stayed. They met again.", encoding="utf-8")
    corpus = load_corpus([TextSource(str(tmp_path), genre="mine")])
    assert corpus.genres == ["mine"] and len(corpus.sentences) == 4
    assert corpus.runs(False) == [(0, 2), (2, 4)]


def test_truecasing_lowers_openers_and_keeps_names():
    truecaser = Truecaser()
    for sentence in ("One day John saw the dog.", "Then the dog saw John.", "And John ran."):
        truecaser.observe(sentence)
    truecaser.counts["I"] += 10
    truecaser.finish()
    assert truecaser.apply("The dog ran. John saw.") == "the dog ran. John saw."
    assert truecaser.apply("one day john saw i .") == "one day John saw I ."


def test_length_batches_cover_everything_once_within_the_limit():
    lengths = np.random.default_rng(0).integers(2, 30, 500)
    batches = LengthBatches(lengths, 120, seed=3)
    first = list(batches)
    assert sorted(i for b in first for i in b) == list(range(500))
    assert all(len(b) * lengths[b].max() <= 120 or len(b) == 1 for b in first)
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first


def test_shares_of_a_batch_follow_each_other():
    lengths = np.random.default_rng(0).integers(2, 30, 500)
    whole = [batch for batch in LengthBatches(lengths, 360, seed=3) if len(batch) >= 3]
    shares = list(LengthBatches(lengths, 120, seed=3, shares=3))
    assert len(shares) == 3 * len(whole)
    for i, batch in enumerate(whole):
        parts = shares[3 * i : 3 * i + 3]
        assert sorted(sum(parts, [])) == sorted(batch) and max(map(len, parts)) - min(map(len, parts)) <= 1


def _tokenizer(corpus):
    from modeling.tokenization import build_word_tokenizer

    return build_word_tokenizer(corpus.sentences)
