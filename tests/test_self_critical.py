"""Self-critical training: samples, baselines, the policy gradient, and whole runs on the tiny preset."""

import json
from pathlib import Path

import pytest
import torch

from modeling.errors import RecipeError
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from tests.tiny import tiny_captioner, tiny_tokenizer
from training import self_critical, train_captioner
from training.recipes import read_recipe
from training.self_critical import (
    SelfCriticalCaptioner,
    SelfCriticalOptions,
    advantages,
    caption_scorer,
    sample_captions,
)
from training.tiny_photos import write_tiny_photos

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"
BARRED = [0, 1, 3]


@pytest.fixture(scope="module")
def model():
    return tiny_captioner()


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(3)
    return torch.randn(6, 4, 64)


@pytest.fixture
def encoded(model, features):
    return model.encoder(region_features=features)


# -- samples -----------------------------------------------------------------------------------------------------------
def test_greedy_samples_are_what_generate_writes(model, features, encoded):
    found, _, _ = sample_captions(model, encoded, 1, 8, BARRED, greedy=True)
    options = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False, "suppress_tokens": BARRED}
    expected = model.generate(region_features=features, **options)[:, 1:]
    ends = (expected == 2).long()
    expected = expected.masked_fill((ends.cumsum(1) - ends) > 0, IGNORE_INDEX)
    assert torch.equal(found, expected)


def test_samples_follow_the_barred_distribution_of_their_photograph(model, encoded):
    torch.manual_seed(0)
    count = 4000
    found, _, _ = sample_captions(model, encoded, count, 2, BARRED)
    first = found[:, 0].view(6, count)
    logits = model(decoder_input_ids=torch.ones(6, 1, dtype=torch.long), encoder_outputs=encoded).logits[:, 0]
    logits[:, BARRED] = -torch.inf
    frequencies = torch.stack([row.bincount(minlength=logits.shape[1]) / count for row in first])
    assert not frequencies[:, BARRED].any()
    assert (frequencies - logits.softmax(-1)).abs().max() < 0.035  # four standard errors at p = 1/2
    # the second word given the first, of the first photograph, although rows that ended have been dropped
    word = int(first[0].mode().values)
    prefix = torch.tensor([[1, word]])
    logits = model(decoder_input_ids=prefix, encoder_outputs=encoded, image_index=torch.tensor([0])).logits[:, -1]
    logits[:, BARRED] = -torch.inf
    second = found[:count][first[0] == word, 1]
    assert (second.bincount(minlength=logits.shape[1]) / len(second) - logits.softmax(-1)[0]).abs().max() < 0.05


def test_nothing_follows_the_end(model, encoded):
    torch.manual_seed(1)
    found, _, _ = sample_captions(model, encoded, 50, 12, BARRED)
    lengths = (found != IGNORE_INDEX).sum(1)
    assert len(set(lengths.tolist())) > 3
    for row, length in zip(found.tolist(), lengths.tolist(), strict=True):
        assert IGNORE_INDEX not in row[:length] and 2 not in row[: length - 1]
        assert row[length - 1] == 2 or length == found.shape[1]


# -- baselines and gradient --------------------------------------------------------------------------------------------
def test_baselines_are_the_papers():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    found = advantages(rewards)
    for b in range(2):
        for i in range(3):
            others = [float(rewards[b, j]) for j in range(3) if j != i]
            assert float(found[b, i]) == pytest.approx(float(rewards[b, i]) - sum(others) / 2)
    greedy = torch.tensor([2.0, 1.0])
    assert advantages(rewards, greedy).tolist() == [[-1.0, 0.0, 4.0], [-1.0, -1.0, 2.0]]


def references():
    texts = ["dog runs on the beach", "a red house", "old lady sleeps", "a blue night", "cat in the sea", "she said"]
    return [[text, "the " + text] for text in texts]


def plain_loss(model, features, rewards, greedy, samples):
    """One caption and one word at a time."""
    total, words, k = 0.0, 0, rewards.shape[1]
    for row, caption in enumerate(samples.tolist()):
        image, i = divmod(row, k)
        caption = [word for word in caption if word != IGNORE_INDEX]
        logits = model(decoder_input_ids=torch.tensor([[1, *caption[:-1]]]), region_features=features[[image]]).logits[
            0
        ]
        others = (float(rewards[image].sum()) - float(rewards[image, i])) / (k - 1)
        gain = float(rewards[image, i]) - (others if greedy is None else float(greedy[image]))
        for step, word in enumerate(caption):
            allowed = [float("-inf") if j in BARRED else 0.0 for j in range(logits.shape[1])]
            total = total - gain * (logits[step] + torch.tensor(allowed)).log_softmax(-1)[word]
            words += 1
    return total / words


def remember_samples(monkeypatch):
    """What is sampled from now on."""
    drawn, plain = [], sample_captions

    def remember(*arguments, **options):
        drawn.append((arguments[0].training, *plain(*arguments, **options)))
        return drawn[-1][1:]

    monkeypatch.setattr(self_critical, "sample_captions", remember)
    return drawn


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_gradient_is_that_of_a_plain_implementation(features, baseline, monkeypatch):
    model = tiny_captioner()
    score = caption_scorer(references(), tiny_tokenizer(), 2)
    wrapped = SelfCriticalCaptioner(model, score, SelfCriticalOptions(3, baseline, max_words=8), BARRED).train()
    drawn = remember_samples(monkeypatch)
    torch.manual_seed(5)
    out = wrapped(rows=torch.arange(6), region_features=features)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert not model.training  # dropout is off in the gradient pass as well
    samples = drawn[0][1]
    rewards = score([i for i in range(6) for _ in range(3)], samples).view(6, 3)
    greedy = score(list(range(6)), drawn[1][1]) if baseline == "greedy" else None
    loss = plain_loss(model, features, rewards, greedy, samples)
    loss.backward()
    torch.testing.assert_close(out.loss, loss.detach(), rtol=1e-4, atol=1e-6)
    assert float(rewards.std()) > 0.1 and {"decoder.state_projection.weight", "encoder.projection.weight"} <= set(found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_log_probabilities_of_samples_are_those_of_the_barred_logits(model, encoded):
    torch.manual_seed(2)
    samples, log_probs, rows = sample_captions(model, encoded, 4, 8, BARRED)
    assert log_probs.requires_grad
    labels = samples.masked_fill(samples == IGNORE_INDEX, 0)
    logits = model(labels=labels, encoder_outputs=encoded, image_index=torch.arange(24) // 4).logits
    logits[..., BARRED] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    for row in range(24):
        torch.testing.assert_close(log_probs[rows == row], expected[row][samples[row] != IGNORE_INDEX])


def test_dropout_only_where_asked_for_and_never_in_the_greedy_baseline(features, monkeypatch):
    score = caption_scorer(references(), tiny_tokenizer(), 2)
    drawn = remember_samples(monkeypatch)
    for dropout in (False, True):
        model = tiny_captioner()
        options = SelfCriticalOptions(3, "greedy", max_words=6, dropout=dropout)
        wrapped = SelfCriticalCaptioner(model, score, options, BARRED).train()
        torch.manual_seed(0)
        out = wrapped(rows=torch.arange(6), region_features=features)
        out.loss.backward()
        assert model.encoder.projection.weight.grad.abs().sum() > 0
        assert model.training is dropout
        (mode, samples, log_probs, rows), (greedy_mode, said, _, _) = drawn
        assert mode is dropout and not greedy_mode
        gain = score([i for i in range(6) for _ in range(3)], samples) - score(list(range(6)), said).repeat_interleave(
            3
        )
        if dropout:  # the loss is made of the very log-probabilities that the samples were drawn with
            torch.testing.assert_close(out.loss, -(gain[rows] * log_probs).mean())
        drawn.clear()


def test_cross_entropy_is_mixed_in_by_its_share(features):
    model = tiny_captioner()
    score = caption_scorer(references(), tiny_tokenizer(), 2)
    labels = tiny_tokenizer()([group[0] for group in references()], padding=True, return_tensors="pt").input_ids[:, 1:]
    labels = labels.masked_fill(labels == 0, IGNORE_INDEX)
    batch = {"rows": torch.arange(6), "region_features": features, "labels": labels, "image_index": torch.arange(6)}

    def loss(share):
        torch.manual_seed(6)
        options = SelfCriticalOptions(max_words=8, xe_weight=share)
        return float(SelfCriticalCaptioner(model, score, options, BARRED).train()(**batch).loss.detach())

    model.eval()
    with torch.no_grad():
        seen = model.encoder(region_features=features)
        truth = float(model.training_loss(seen, model.shift_right(labels), labels, None))
    assert loss(1.0) == pytest.approx(truth, rel=1e-5)
    assert loss(0.25) == pytest.approx(0.75 * loss(0.0) + 0.25 * truth, rel=1e-4)


@pytest.mark.parametrize("dropout", [False, True])
def test_reward_rises(features, dropout):
    torch.manual_seed(0)
    model = tiny_captioner()
    score = caption_scorer(references(), tiny_tokenizer(), 2)
    wrapped = SelfCriticalCaptioner(model, score, SelfCriticalOptions(8, max_words=8, dropout=dropout), BARRED).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    rewards = []
    for _ in range(120):
        out = wrapped(rows=torch.arange(6), region_features=features)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        rewards.append(float(out.report["reward"]))
    assert sum(rewards[-10:]) > (2 if dropout else 3) * sum(rewards[:10]), (sum(rewards[:10]), sum(rewards[-10:]))


def test_unusable_options_are_one_sentence():
    with pytest.raises(RecipeError, match="use one of: mean, greedy"):
        SelfCriticalOptions(baseline="median")
    with pytest.raises(RecipeError, match="at least 2"):
        SelfCriticalOptions(samples=1)
    with pytest.raises(RecipeError, match="from 0 to 1"):
        SelfCriticalOptions(xe_weight=2)


# -- whole runs --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The tiny data set; every caption of its validation split says "secret"."""
    from datasets import Dataset

    folder = write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")
    path = str(folder / "validation-00000-of-00001.parquet")
    table = Dataset.from_parquet(path, cache_dir=str(folder.parent / "cache"))
    table.map(lambda row: {"captions": [f"secret {text}" for text in row["captions"]]}).to_parquet(path)
    return folder


def run_tiny(photos, output, resume=False, **more):
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")
    settings = {"data.train": [str(photos)], "data.validation": [str(photos)]}
    settings |= {"data.cache_dir": str(photos.parent / "features"), "training.output_dir": str(output), **more}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return train_captioner.run(read_recipe(RECIPE, train_captioner.CaptionerRecipe, overrides), resume)


@pytest.fixture(scope="module")
def first_stage(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "first"
    run_tiny(photos, output, **{"training.epochs": 12, "training.evaluate_every": 12})
    return output / "best"


def second_stage(first_stage, **more):
    settings = {"initial": str(first_stage), "self_critical": {"samples": 4, "max_words": 10}}
    settings |= {"data.batch_size": 3, "training.learning_rate": 1e-3, "training.schedule": "constant"}
    return settings | {"training.save_every": 2, "training.evaluate_every": 3, "training.log_every": 1, **more}


def test_second_stage_starts_from_the_first_and_sees_training_captions_only(photos, first_stage, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(self_critical, "CiderReward", lambda refs: (seen.extend(refs), REWARD(refs))[1])
    settings = second_stage(first_stage, **{"training.max_steps": 3, "training.evaluate_at_start": True})
    result = run_tiny(photos, tmp_path / "run", **settings)
    assert result.steps == 3 and len(seen) == 8
    words = {word for captions in seen for caption in captions for word in caption}
    assert "secret" not in words and {"circle", "square", "</s>"} <= words
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "run" / "best" / name).read_text() == (first_stage / name).read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and "cider" in lines[0]  # evaluated before the first step
    assert all(0 <= line["reward"] <= 10 for line in lines if "loss" in line)
    state = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "run" / "last").state_dict()
    start = PictaleCaptionerForConditionalGeneration.from_pretrained(first_stage).state_dict()
    assert state.keys() == start.keys()
    assert 0 < max(float((state[key] - start[key]).abs().max()) for key in state) < 0.02


REWARD = self_critical.CiderReward


def test_resumed_run_equals_an_uninterrupted_one(photos, first_stage, tmp_path):
    settings = second_stage(first_stage, **{"training.ema_decay": 0.9})
    whole = run_tiny(photos, tmp_path / "whole", **settings, **{"training.max_steps": 7})
    run_tiny(photos, tmp_path / "cut", **settings, **{"training.max_steps": 4})  # inside an epoch of 3 steps
    resumed = run_tiny(photos, tmp_path / "cut", True, **settings, **{"training.max_steps": 7})
    assert whole.steps == resumed.steps == 7
    one, two = (
        PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / name / "last").state_dict()
        for name in ("whole", "cut")
    )
    assert not [key for key in one if not torch.equal(one[key], two[key])]


def test_starting_from_nothing_is_one_sentence(photos, first_stage, tmp_path):
    with pytest.raises(RecipeError, match="Cannot start from"):
        run_tiny(photos, tmp_path / "a", initial=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="leaves the shape"):
        run_tiny(photos, tmp_path / "b", initial=str(first_stage), **{"model.hidden_size": 64})
    with pytest.raises(RecipeError, match="'colour' is no field"):
        run_tiny(photos, tmp_path / "c", initial=str(first_stage), **{"model.colour": "red"})
