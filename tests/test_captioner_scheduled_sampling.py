"""Scheduled sampling against the algorithm written out, its schedules, and its count of steps."""

import math

import pytest
import torch

from modeling.captioner_scheduled_sampling import OwnWords, truth_probability
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from tests.captioners import NO_DROPOUT, WrittenOut, make_model

SCHEDULED = {"scheduled_sampling": "linear", "scheduled_sampling_k": 10, "scheduled_sampling_floor": 0.0}


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(1)
    return torch.randn(4, 4, 24)


@pytest.fixture(scope="module")
def labels():
    torch.manual_seed(2)
    return torch.randint(3, 23, (4, 6))  # all of one length: rows keep their order


def loss_of(model, features, labels):
    torch.manual_seed(3)
    return model.train()(region_features=features, labels=labels).loss


def at_step(step, **changes):
    model = make_model(**{**NO_DROPOUT, **SCHEDULED, "label_smoothing": 0.0, "attention_penalty": 0.0, **changes})
    model.training_steps.count.fill_(step)
    return model


@pytest.mark.parametrize("vocabulary", [{}, {"adaptive_cutoff": 9}])
def test_loss_and_gradients_are_the_algorithms(features, labels, vocabulary):
    """At step 4 of a slope of 1/10, a word is the model's own with probability 0.4, drawn without gradient."""
    model = at_step(4, **vocabulary)
    loss = loss_of(model, features, labels)
    torch.manual_seed(3)
    by_hand, losses, own = [WrittenOut(model, photo) for photo in features], [], 0
    for t in range(labels.shape[1]):
        words = [1] * 4 if t == 0 else labels[:, t - 1].tolist()
        if t > 0:
            rows = (torch.rand(4) < 0.4).nonzero().squeeze(1).tolist()
            if rows:
                probabilities = torch.stack([by_hand[row].log_probs() for row in rows]).exp()
                for row, word in zip(rows, torch.multinomial(probabilities, 1).squeeze(1).tolist(), strict=True):
                    words[row], own = word, own + 1
        for row, word in enumerate(words):
            by_hand[row].step(by_hand[row].word(word))
            losses.append(-by_hand[row].log_probs()[labels[row, t]])
    assert 0 < own < 20
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected)
    trained = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_first_step_is_teacher_forced_and_the_last_repeats_with_the_seed(features, labels):
    plain = make_model(**NO_DROPOUT, label_smoothing=0.0, attention_penalty=0.0)
    forced = loss_of(plain, features, labels)
    torch.testing.assert_close(loss_of(at_step(0), features, labels), forced)
    own = loss_of(at_step(10), features, labels)
    assert own != forced and torch.equal(own, loss_of(at_step(10), features, labels))


def test_every_word_but_the_first_is_ones_own_at_probability_one(features, labels, monkeypatch):
    drawn = []
    draw = OwnWords.draw
    monkeypatch.setattr(OwnWords, "draw", lambda self, deep: drawn.append(len(deep)) or draw(self, deep))
    loss_of(at_step(10), features, labels)
    assert drawn == [4] * 5
    drawn.clear()
    at_step(10).eval()(region_features=features, labels=labels)
    assert not drawn


@pytest.mark.parametrize(
    ("schedule", "k", "expected"),
    [
        ("none", 10, [1, 1, 1]),
        ("linear", 10, [1, 0.7, 0.2]),
        ("exponential", 10, [1, math.exp(-0.3), math.exp(-1)]),
        ("inverse_sigmoid", 10, [10 / 11, 10 / (10 + math.exp(0.3)), 10 / (10 + math.e)]),
    ],
)
def test_schedules(schedule, k, expected):
    found = [truth_probability(schedule, step, k, 0.2) for step in (0, 3, 10)]
    assert found == pytest.approx(expected)
    assert truth_probability(schedule, 10**6, k, 0.2) == (1 if schedule == "none" else 0.2)
    half = truth_probability("inverse_sigmoid", round(10 * math.log(10)), 10, 0)
    assert half == pytest.approx(0.5, abs=0.01)


def test_steps_are_counted_and_kept_with_the_weights(tmp_path, features, labels):
    model = make_model(**SCHEDULED)
    for _ in range(3):
        loss_of(model, features, labels)
    model.eval()(region_features=features, labels=labels)  # an evaluation is no step
    assert model.training_steps.count == 3
    assert model.train()(region_features=features, labels=labels).report == {"true_words": pytest.approx(0.7)}
    model.training_steps.count.fill_(3)
    model.save_pretrained(tmp_path / "scheduled")
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "scheduled")
    assert again.training_steps.count == 3 and again.training_steps.count.dtype == torch.int64
    make_model().save_pretrained(tmp_path / "plain")
    new = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "plain", scheduled_sampling="linear")
    assert new.training_steps.count == 0
