"""The sampling loop draws what it should, from its own generator."""

import dataclasses

import pytest
import torch

from modeling.sampling import SamplingOptions, bar_repeats, draw, sample_passages
from tests.tiny import tiny_decoder


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


@pytest.fixture(scope="module")
def conditions(decoder):
    torch.manual_seed(3)
    return decoder.conditions(torch.nn.functional.normalize(torch.randn(1, 24), dim=-1), None, torch.tensor([[5, 9]]))


def sample(decoder, conditions, seed=0, count=4, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample_passages(decoder, conditions, count, generator, SamplingOptions(max_new_tokens=12, **options))


def test_without_warmth_it_is_greedy_search(decoder, conditions):
    expected = decoder.generate(encoder_outputs=conditions, do_sample=False, max_new_tokens=12)
    out = sample(decoder, conditions, temperature=1e-6, count=3)
    assert all(torch.equal(row[: expected.size(1)], expected[0]) for row in out)


def test_a_seed_means_the_same_whatever_else_is_drawn(decoder, conditions):
    torch.manual_seed(1)
    first = sample(decoder, conditions, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, sample(decoder, conditions, seed=5))
    assert not torch.equal(first, sample(decoder, conditions, seed=6))


def test_lengths_and_endings(decoder, conditions):
    out = sample(decoder, conditions, count=30, min_new_tokens=4, temperature=3.0)
    for row in out.tolist():
        words = row[1:]
        assert 2 not in words[:4]
        if 2 in words:
            assert set(words[words.index(2) + 1 :]) <= {0}
    assert not torch.isin(out[:, 1:], torch.tensor([1, 3])).any()


def test_drawing_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = probabilities.log().expand(20000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**options):
        ids = draw(rows, generator, SamplingOptions(temperature=1.0, **options))
        return torch.bincount(ids, minlength=4) / len(ids)

    torch.testing.assert_close(shares(top_p=1.0), probabilities, atol=0.015, rtol=0)
    # the fewest words that reach 0.7 are the first two
    torch.testing.assert_close(shares(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(top_p=1.0, top_k=1), torch.tensor([1.0, 0, 0, 0]))


def test_repeats_are_barred():
    log_probs = torch.zeros(2, 10)
    bar_repeats(log_probs, torch.tensor([[1, 5, 6, 7, 5, 6], [1, 5, 6, 7, 6, 5]]), 3)
    assert log_probs[0].isinf().nonzero().flatten().tolist() == [7]
    assert not log_probs[1].isinf().any()


def test_no_ngram_is_written_twice(decoder, conditions):
    options = SamplingOptions(max_new_tokens=25, no_repeat_ngram_size=2, temperature=0.5, min_new_tokens=20)
    out = sample_passages(decoder, conditions, 5, torch.Generator().manual_seed(0), options)
    for row in out.tolist():
        row = [i for i in row if i != 0]
        pairs = list(zip(row, row[1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_the_presence_penalty_makes_repeats_rarer_where_it_holds(decoder, conditions):
    def repeats(penalty, penalized=None):
        options = SamplingOptions(max_new_tokens=12, min_new_tokens=12, presence_penalty=penalty)
        out = sample_passages(decoder, conditions, 60, torch.Generator().manual_seed(0), options, penalized)
        return sum(len(row) - len(set(row)) for row in out.tolist())

    assert repeats(3.0) < repeats(0.0)
    assert repeats(3.0, torch.zeros(decoder.config.vocab_size)) == repeats(0.0)


def test_options_are_a_part_of_the_story_options():
    from modeling import StoryOptions

    assert {f.name for f in dataclasses.fields(SamplingOptions)} <= {f.name for f in dataclasses.fields(StoryOptions)}
