"""Fine-tuning on one's own photographs: new words, the command, its report and result, going on after a kill."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from modeling import (
    PictaleCaptionerConfig,
    PictaleCaptionerForConditionalGeneration,
    PictaleSkipThoughtsEncoder,
    Source,
    StoryPipeline,
)
from modeling.bookshelf import BOOKSHELF_FILE, Book, Bookshelf
from modeling.errors import DataError, ModelFolderError, RecipeError
from modeling.fingerprints import encoder_fingerprint
from modeling.styles import encode_passages
from modeling.tokenization import build_bpe_tokenizer
from tests.tiny import WORDS, save_tiny_pipeline, tiny_captioner, tiny_tokenizer
from training import caption_sources, finetune_captioner
from training.caption_sources import read_split
from training.data_captions import normalise_caption
from training.finetune_captioner import FineTuneOptions, fine_tune
from training.loop import Trainer
from training.new_words import add_words, grow_vocabulary, learn_words, unknown_words
from training.tiny_photos import COLOURS, SHAPES, draw

PHOTOS = 100


@pytest.fixture(autouse=True, scope="module")
def metrics():
    """Of the module, so that it comes before the fixtures that train."""
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("training.metrics_captions.has_java", lambda: False)
    monkeypatch.setattr(caption_sources, "_said", set())


def write_photos(folder, count):
    """Photographs of eight kinds, two captions each."""
    rows = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 4], SHAPES[i // 4 % 2]
        (folder / f"{i:03}.png").write_bytes(draw(colour, shape, 64 + i % 7))
        rows += [(f"{i:03}.png", text.format(c=colour, s=shape)) for text in ("A {c} {s}.", "There is a {c} {s}!")]
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), PHOTOS)


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("few"), 20)


def make_bookshelf(encoder):
    texts = [f"The dog of number {i} sleeps. The old lady said no." for i in range(8)]
    books, thoughts = (Book(Source("Kim"), "romance"),), encode_passages(encoder, [[text] for text in texts])
    return Bookshelf.of(texts, books, [0] * 8, thoughts, encoder_fingerprint(encoder), components=4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("models"))
    config = folder.parent / "tiny-captioner" / "config.json"
    calm = dict.fromkeys(
        ("embed_dropout", "output_dropout", "region_dropout", "label_smoothing", "attention_penalty"), 0.0
    )
    config.write_text(json.dumps(json.loads(config.read_text()) | calm))  # it is too small to learn otherwise
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(folder.parent / "tiny-encoder")
    encoder.tokenizer = tiny_tokenizer()
    make_bookshelf(encoder).save(folder / BOOKSHELF_FILE)
    return folder


def options(photos, pipeline, output, **changes):
    settings = {"epochs": 25, "learning_rate": 0.01, **changes}
    return FineTuneOptions(str(photos), str(output), model=str(pipeline), **settings)


@pytest.fixture(scope="module")
def tuned(photos, pipeline, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.metrics_captions.has_java", lambda: False)
        return output, fine_tune(options(photos, pipeline, output))


# -- new words ---------------------------------------------------------------------------------------------------------
def test_unknown_words_are_those_seen_often_enough():
    tokenizer = tiny_tokenizer()
    captions = ["A zebra, a dog!", "zebra & okapi", "OKAPI zebra quagga", "t-shirt"]
    assert unknown_words(captions, tokenizer, 2) == ["zebra", "okapi"]
    assert unknown_words(captions, tokenizer, 1) == ["zebra", "okapi", "-", "and", "quagga", "shirt", "t"]
    assert unknown_words(captions, tokenizer, 5) == []
    assert unknown_words(captions, build_bpe_tokenizer(captions, 60, 1), 1) == []


def test_added_words_come_after_the_old_ones_and_change_nothing_else(tmp_path):
    old = tiny_tokenizer()
    new = add_words(old, ["zebra", "okapi", "dog"])
    assert len(new) == len(old) + 2
    assert {word: new.get_vocab()[word] for word in old.get_vocab()} == old.get_vocab()
    text = "A dog , the old lady's Dog and it isn't red"
    assert new(text).input_ids == old(text).input_ids
    new.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = again("the zebra, the okapi").input_ids
    assert ids[2] == len(old) and ids[5] == len(old) + 1
    assert again.decode(ids, skip_special_tokens=True) == "the zebra , the okapi"


VARIANTS = [{}, {"tie_word_embeddings": False}, {"adaptive_cutoff": 12}, {"output_bottleneck": 8}]


def captioner(**settings):
    torch.manual_seed(0)
    config = PictaleCaptionerConfig(**{**tiny_captioner().config.to_dict(), **settings})
    return PictaleCaptionerForConditionalGeneration(config).eval()


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_grown_captioner_says_of_old_words_what_it_said(settings, tmp_path):
    model = captioner(**settings)
    size, adaptive = model.config.vocab_size, "adaptive_cutoff" in settings
    likeness = torch.zeros(3, size)
    likeness[0, 20], likeness[1, 18:20] = 2.0, 0.5  # like word 20; between 18 and 19; like none
    larger = grow_vocabulary(model, likeness)
    assert larger.config.vocab_size == size + 3 and not larger.training
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(4, size, (2, 5))
    before = model(pixel_values=pixels, decoder_input_ids=ids).logits
    after = larger(pixel_values=pixels, decoder_input_ids=ids).logits
    if adaptive:  # log-probabilities, where the rare words share theirs with the new ones
        torch.testing.assert_close(after[..., :12], before[..., :12])
        shared = before[..., 12:].logsumexp(-1)
        torch.testing.assert_close(after[..., 12:].logsumexp(-1), shared)
    else:
        torch.testing.assert_close(after[..., :size], before)
    known = after[..., (12 if adaptive else 4) : size]
    alike = (after[..., size], after[..., 20]), (after[..., size + 1], after[..., 18:20].mean(-1))
    for new, old in (*alike, (after[..., size + 2], known.mean(-1))):
        torch.testing.assert_close(new, old, atol=0.1 * known.std().item(), rtol=0)
        assert (new - old).abs().max() > 0
    larger.save_pretrained(tmp_path)
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(pixel_values=pixels, decoder_input_ids=ids).logits, after)


def test_adaptive_words_without_a_tail_are_said_to_be_full():
    model = captioner(adaptive_cutoff=len(tiny_tokenizer()))
    with pytest.raises(ModelFolderError, match="cannot learn new words"):
        grow_vocabulary(model, torch.zeros(1, model.config.vocab_size))


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_new_word_starts_as_what_the_model_would_have_said_in_its_place(settings):
    """Against the equations at the head of new_words, word by word."""
    model, tokenizer = captioner(**settings), tiny_tokenizer()
    captions = [["a dog on the zebra", "zebra runs"], ["the okapi", "a red cat"]]
    features = torch.randn(2, 4, 64)
    source = SimpleNamespace(usable=[True, True], kind="region_features", get_many=lambda rows: features[list(rows)])
    larger, larger_tokenizer = learn_words(model, tokenizer, ["zebra", "okapi"], source, captions)
    size = len(tokenizer)

    def expected_at(model, tokenizer):
        """[(what stands there, what the model expects there)]"""
        for row, group in enumerate(captions):
            for text in group:
                ids, there = tokenizer(text).input_ids, larger_tokenizer(text).input_ids[1:]
                logits = model(region_features=features[[row]], decoder_input_ids=torch.tensor([ids[:-1]])).logits[0]
                yield from zip(there, logits.softmax(-1), strict=True)

    start = torch.zeros(2, size)
    for word, probabilities in expected_at(model, tokenizer):
        if word >= size:
            start[word - size, 4:] += probabilities[4:]
    plain = grow_vocabulary(model, start)
    counts, sums = torch.zeros(2), torch.zeros(2)
    for word, probabilities in expected_at(plain, larger_tokenizer):
        counts += torch.tensor([float(word == size), float(word == size + 1)])
        sums += probabilities[size:]
    name = "words.tail_bias" if "adaptive_cutoff" in settings else "vocabulary.bias"
    state, wanted = larger.state_dict(), plain.state_dict()
    wanted[name][-2:] += (counts / sums).log().clamp(-3, 3)
    assert counts.tolist() == [2, 1]
    for key, value in state.items():
        torch.testing.assert_close(value, wanted[key], atol=1e-5, rtol=1e-4)


# -- the command -------------------------------------------------------------------------------------------------------
def test_it_learns_the_photographs_and_their_words(tuned):
    _, comparison = tuned
    assert {"circle", "square", "green", "yellow"} <= set(comparison.new_words)
    assert not set(WORDS) & set(comparison.new_words)
    assert comparison.before.scores["cider"] < 20 and comparison.after.scores["cider"] > 200
    assert comparison.gain[1] > 0
    right = sum(
        normalise_caption(text) in map(normalise_caption, comparison.held.captions[row])
        for row, text in comparison.after.captions.items()
    )
    assert right >= 0.8 * len(comparison.held)


def test_what_is_measured_was_never_learned_from(tuned, photos):
    output, comparison = tuned
    source = json.loads((output / "recipe.json").read_text())["data"]["train"][0]
    learned = set(read_split(source, "train").image_ids)
    assert len(learned) == comparison.learned and 10 <= len(comparison.held) <= 30
    assert not learned & set(comparison.held.image_ids)
    assert len(learned | set(comparison.held.image_ids)) == PHOTOS


def test_the_result_is_a_captioner_and_a_whole_pipeline(tuned, photos, pipeline):
    output, comparison = tuned
    assert not (output / "unfinished").exists()
    assert {"README.md", "report.json", "recipe.json", "log.jsonl"} <= {path.name for path in output.iterdir()}
    pipe = StoryPipeline.from_pretrained(output)
    assert list(pipe.styles) == list(StoryPipeline.from_pretrained(pipeline).styles)
    assert pipe.has_writer("bookshelf") and pipe.writers["bookshelf"].bookshelf.passages
    assert all(pipe.has_writer(name) for name in ("storyteller", "neural-storyteller"))
    kept = {path.name: path.read_bytes() for path in (pipeline.parent / "tiny-storyteller").iterdir()}
    assert {path.name: path.read_bytes() for path in (output / "tiny-storyteller").iterdir()} == kept
    caption = pipe.caption(photos / "002.png")[0][0]
    assert {"blue", "circle"} <= set(caption.words)
    assert pipe(photos / "002.png", seed=1).story
    model = AutoModelForImageTextToText.from_pretrained(output, trust_remote_code=True)
    assert model.config.vocab_size == len(PreTrainedTokenizerFast.from_pretrained(output))
    report = json.loads((output / "report.json").read_text())
    assert report["after"] == comparison.after.scores and len(report["captions"]) == len(comparison.held)
    card = (output / "README.md").read_text()
    assert f"| after | {comparison.after.scores['bleu_1']:.1f}" in card and str(photos) not in card


def test_the_command_tells_what_it_does(few_photos, pipeline, tmp_path, capsys):
    arguments = ["--photos", str(few_photos), "--captions", str(few_photos / "captions.csv"), "--model", str(pipeline)]
    arguments += ["--output", str(tmp_path / "out"), "--epochs", "1", "--min-count", "1000"]
    assert finetune_captioner.main(arguments) == 0
    said = capsys.readouterr().out
    order = ["held out", "Before: CIDEr", "Expected: ", "After:  CIDEr", "Gain on", "before  ", "people  ", "--model"]
    places = [said.find(text) for text in order]
    assert -1 not in places and places == sorted(places)
    assert "new words" not in said
    # and once more, from what came out
    again = options(few_photos, tmp_path / "out", tmp_path / "again", epochs=1)
    assert fine_tune(again).before.scores["cider"] == pytest.approx(fine_tune_result(tmp_path / "out"), abs=0.5)


def fine_tune_result(output):
    return json.loads((output / "report.json").read_text())["after"]["cider"]


def test_a_stopped_run_goes_on_to_the_same_end(few_photos, pipeline, tmp_path, monkeypatch):
    checkpoint = Trainer.checkpoint

    def stop_after_the_first(trainer):
        checkpoint(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(options(few_photos, pipeline, tmp_path / "cut", epochs=5, batch_size=2))
    with pytest.raises(RecipeError, match="is not empty: add --resume to go on with it"):
        fine_tune(options(few_photos, pipeline, tmp_path / "cut"))
    fine_tune(options(few_photos, pipeline, tmp_path / "cut"), resume=True)
    fine_tune(options(few_photos, pipeline, tmp_path / "whole", epochs=5, batch_size=2))
    one, two = (
        PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / name).state_dict()
        for name in ("cut", "whole")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_cannot_be_learned_from_is_one_sentence(photos, pipeline, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(RecipeError, match="is not empty: choose another"):
        fine_tune(options(photos, pipeline, tmp_path / "full"))
    with pytest.raises(RecipeError, match="Nothing to resume"):
        fine_tune(options(photos, pipeline, tmp_path / "none"), resume=True)
    with pytest.raises(RecipeError, match="part of 1"):
        options(photos, pipeline, tmp_path / "none", held_out=20)
    with pytest.raises(RecipeError, match="epochs must be more than 0"):
        options(photos, pipeline, tmp_path / "none", epochs=0)
    (tmp_path / "one.csv").write_text("file,caption\n000.png,a red circle\n")
    with pytest.raises(DataError, match="too few photographs: give at least three"):
        fine_tune(options(photos, pipeline, tmp_path / "none", captions=str(tmp_path / "one.csv")))
    assert not (tmp_path / "none").exists()
    arguments = ["--photos", str(tmp_path), "--captions", "nowhere.csv", "--output", str(tmp_path / "none")]
    assert finetune_captioner.main([*arguments, "--model", str(pipeline)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: There is no file or folder 'nowhere.csv'")
