"""Beam search finds the most probable passage."""

import itertools

import pytest
import torch

from modeling.beam_search import beam_passages
from tests.tiny import tiny_decoder

END, WORDS, LENGTH = 2, (5, 6, 7), 4


@pytest.fixture
def decoder():
    """One that may write three words only."""
    model = tiny_decoder()
    model.generation_config.suppress_tokens = [i for i in range(model.config.vocab_size) if i not in (END, *WORDS)]
    return model


@pytest.fixture
def conditions(decoder):
    torch.manual_seed(4)
    return decoder.conditions(torch.nn.functional.normalize(torch.randn(1, 24), dim=-1), None, torch.tensor([[5, 9]]))


def brute_force(decoder, conditions):
    """All passages of up to four words and marks, with their total log-probabilities, best first."""
    found = []
    for length in range(2, LENGTH + 1):  # an empty passage is none
        for words in itertools.product(WORDS, repeat=length - 1):
            for last in (END,) if length < LENGTH else (END, *WORDS):
                ids = torch.tensor([[1, *words, last]])
                log_probs = decoder(decoder_input_ids=ids[:, :-1], encoder_outputs=conditions).logits[0]
                found.append((float(log_probs.gather(1, ids[0, 1:, None]).sum().detach()), [*words, last]))
    return sorted(found, reverse=True)


def words_of(found, row):
    return [i for i in found.sequences[row, 1:].tolist() if i != 0]


def test_wide_enough_it_is_brute_force(decoder, conditions):
    expected = brute_force(decoder, conditions)
    found = beam_passages(decoder, conditions, len(expected), LENGTH)
    assert len(found.sequences) == len(expected)
    for row, (total, ids) in enumerate(expected):
        words = words_of(found, row)
        assert float(found.log_probs[row]) * len(words) == pytest.approx(total, abs=1e-4)
        assert bool(found.finished[row]) == (words[-1] == END)
        assert words == ids or abs(total - expected[row - 1][0]) < 1e-5


def test_one_beam_is_greedy_and_more_are_no_worse(decoder, conditions):
    greedy = decoder.generate(encoder_outputs=conditions, do_sample=False, max_new_tokens=6, min_new_tokens=1)
    found = [beam_passages(decoder, conditions, width, 6) for width in (1, 8)]
    assert found[0].sequences[0].tolist() == greedy[0].tolist()
    totals = [float(f.log_probs[0]) * len(words_of(f, 0)) for f in found]
    assert totals[1] >= totals[0]
    assert len(found[1].sequences) == 8


def test_lengths_hold(conditions):
    decoder = tiny_decoder()
    found = beam_passages(decoder, conditions, 5, 9, 6)
    for row in range(5):
        ids = words_of(found, row)
        assert 6 < len(ids) <= 9 and END not in ids[:6]
        assert bool(found.finished[row]) == (ids[-1] == END)
    assert not torch.isin(found.sequences[:, 1:], torch.tensor([1, 3])).any()  # barred: <s>, <unk>


def test_best_first_with_the_models_own_log_probabilities(decoder, conditions):
    found = beam_passages(decoder, conditions, 6, 5)
    torch.testing.assert_close(found.log_probs, decoder.score(conditions, found.sequences), rtol=0, atol=1e-4)
    totals = [float(found.log_probs[row]) * len(words_of(found, row)) for row in range(6)]
    assert totals == sorted(totals, reverse=True)
    assert len({tuple(row) for row in found.sequences.tolist()}) == 6
