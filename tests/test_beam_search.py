"""Beam search finds the most probable passage."""

import itertools

import pytest
import torch

from modeling.beam_search import beam_passages
from modeling.sampling import SamplingOptions, begin
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


def brute_force(decoder, conditions, context=()):
    """All passages of up to four words and marks, with their total log-probabilities, best first."""
    found = []
    for length in range(1, LENGTH + 1):
        for words in itertools.product(WORDS, repeat=length - 1):
            for last in (END,) if length < LENGTH else (END, *WORDS):
                if length == 1:
                    continue  # an empty passage
                ids = torch.tensor([[1, *context, *words, last]])
                log_probs = decoder(decoder_input_ids=ids[:, :-1], encoder_outputs=conditions).logits[0]
                total = log_probs.gather(1, ids[0, 1:, None])[len(context) :].sum()
                found.append((float(total.detach()), [*words, last]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("context", [(), (8, 6)])
def test_wide_enough_it_is_brute_force(decoder, conditions, context):
    expected = brute_force(decoder, conditions, context)
    options = SamplingOptions(max_new_tokens=LENGTH)
    found = beam_passages(decoder, conditions, len(expected), options, begin(decoder, conditions, context))
    assert len(found.sequences) == len(expected)
    for row, (total, ids) in enumerate(expected):
        new = [i for i in found.new_ids(row) if i != 0]
        assert float(found.log_probs[row]) * len(new) == pytest.approx(total, abs=1e-4)
        assert bool(found.finished[row]) == (new[-1] == END)
        assert new == ids or abs(total - expected[row - 1][0]) < 1e-5


def test_one_beam_is_greedy_and_more_are_no_worse(decoder, conditions):
    options = SamplingOptions(max_new_tokens=6)
    greedy = decoder.generate(encoder_outputs=conditions, do_sample=False, max_new_tokens=6, min_new_tokens=1)
    found = [beam_passages(decoder, conditions, width, options) for width in (1, 8)]
    assert found[0].sequences[0].tolist() == greedy[0].tolist()
    totals = [float(f.log_probs[0]) * sum(i != 0 for i in f.new_ids(0)) for f in found]
    assert totals[1] >= totals[0]
    assert len(found[1].sequences) == 8


def test_lengths_and_repeats_hold(conditions):
    decoder = tiny_decoder()
    options = SamplingOptions(min_new_tokens=6, max_new_tokens=9, no_repeat_ngram_size=2)
    found = beam_passages(decoder, conditions, 5, options)
    for row in range(5):
        ids = [i for i in found.new_ids(row) if i != 0]
        assert 6 < len(ids) <= 9 and END not in ids[:6]
        pairs = list(zip(ids, ids[1:], strict=False))
        assert len(pairs) == len(set(pairs))
    assert not torch.isin(found.sequences[:, 1:], torch.tensor([1, 3])).any()


def test_states_are_those_of_their_rows(decoder, conditions):
    found = beam_passages(decoder, conditions, 6, SamplingOptions(max_new_tokens=5))
    for row in range(6):
        draft = found.draft(row, pad_id=0)
        torch.testing.assert_close(draft.state, begin(decoder, conditions, draft.written).state, rtol=0, atol=1e-5)
