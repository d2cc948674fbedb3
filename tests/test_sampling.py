"""Words are drawn as the options say, from a generator of one's own, and what was written or shown is barred."""

import pytest
import torch

from modeling.sampling import SamplingOptions, bar_repeats, draw, runs_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_drawing_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = probabilities.log().expand(20000, 4)

    def shares(**options):
        ids = draw(rows, generator(), SamplingOptions(**{"temperature": 1.0, "top_p": 1.0} | options))
        return torch.bincount(ids, minlength=4) / len(ids)

    torch.testing.assert_close(shares(), probabilities, atol=0.015, rtol=0)
    # the fewest words that reach 0.7 are the first two
    torch.testing.assert_close(shares(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(top_k=1), torch.tensor([1.0, 0, 0, 0]))
    # a quarter of the most probable word's 0.5 leaves three
    expected = torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95
    torch.testing.assert_close(shares(min_p=0.25), expected, atol=0.015, rtol=0)
    torch.testing.assert_close(shares(min_p=1.0), torch.tensor([1.0, 0, 0, 0]))


def test_temperature_sharpens_and_flattens():
    rows = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20000, 4)
    for temperature in (0.5, 2.0):
        ids = draw(rows, generator(), SamplingOptions(temperature=temperature, top_p=1.0))
        expected = (rows[0] / temperature).softmax(-1)
        torch.testing.assert_close(torch.bincount(ids, minlength=4) / len(ids), expected, atol=0.015, rtol=0)
    assert set(draw(rows, generator(), SamplingOptions(temperature=1e-6)).tolist()) == {0}


def test_a_seed_means_the_same_whatever_else_is_drawn():
    rows = torch.randn(50, 30, generator=generator(7)).log_softmax(-1)
    torch.manual_seed(1)
    first = draw(rows, generator(5), SamplingOptions(temperature=2.0))
    torch.manual_seed(2)
    assert torch.equal(first, draw(rows, generator(5), SamplingOptions(temperature=2.0)))
    assert not torch.equal(first, draw(rows, generator(6), SamplingOptions(temperature=2.0)))


def test_a_barred_word_is_never_drawn():
    rows = torch.zeros(1000, 4)
    rows[:, 2] = -torch.inf
    ids = draw(rows.log_softmax(-1), generator(), SamplingOptions(temperature=1.0, top_p=1.0))
    assert set(ids.tolist()) == {0, 1, 3}


def test_repeats_are_barred():
    log_probs = torch.zeros(2, 10)
    bar_repeats(log_probs, torch.tensor([[1, 5, 6, 7, 5, 6], [1, 5, 6, 7, 6, 5]]), 3)
    assert log_probs[0].isinf().nonzero().flatten().tolist() == [7]
    assert not log_probs[1].isinf().any()


@pytest.mark.parametrize(("ids", "size"), [([5, 6, 5, 6], 0), ([5, 6], 3), ([], 2)])
def test_nothing_is_barred_where_nothing_can_repeat(ids, size):
    log_probs = torch.zeros(1, 10)
    bar_repeats(log_probs, torch.tensor([ids], dtype=torch.long), size)
    assert not log_probs.isinf().any()


def test_the_runs_of_a_text():
    assert runs_of([4, 5, 6, 4, 5, 7], 3) == {(4, 5): [6, 7], (5, 6): [4], (6, 4): [5]}


def test_a_text_shorter_than_a_run_has_none():
    assert runs_of([1, 2], 3) == {} and runs_of([], 6) == {}
