"""The sampling loop draws what it should, from its own generator, whole or sentence by sentence."""

import dataclasses

import pytest
import torch

import modeling.sampling
from modeling.modeling_story_decoder import StoryConditionOutput
from modeling.sampling import (
    SamplingOptions,
    SentenceMarks,
    bar_repeats,
    begin,
    draw,
    sample_passages,
    sample_sentences,
)
from tests.tiny import tiny_decoder, tiny_tokenizer

END = 2


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


@pytest.fixture(scope="module")
def conditions(decoder):
    torch.manual_seed(3)
    return decoder.conditions(torch.nn.functional.normalize(torch.randn(1, 24), dim=-1), None, torch.tensor([[5, 9]]))


@pytest.fixture(scope="module")
def marks():
    words = tiny_tokenizer().get_vocab()
    return SentenceMarks((words["."], words["!"]), words["“"], words["”"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(decoder, conditions, seed=0, count=4, **options):
    options = SamplingOptions(max_new_tokens=12, **options)
    return sample_passages(decoder, conditions, count, generator(seed), options).sequences


def test_without_warmth_it_is_greedy_search(decoder, conditions):
    expected = decoder.generate(encoder_outputs=conditions, do_sample=False, max_new_tokens=12)
    out = sample(decoder, conditions, temperature=1e-6, count=3)
    assert all(torch.equal(row[: expected.size(1)], expected[0]) for row in out)


@pytest.fixture(scope="module")
def two_conditions(decoder, conditions):
    """Those that are wanted, and those of another thought without words."""
    torch.manual_seed(4)
    other = decoder.conditions(torch.nn.functional.normalize(torch.randn(1, 24), dim=-1), None, torch.tensor([[0, 0]]))
    pairs = zip(conditions.to_tuple(), other.to_tuple(), strict=True)
    return StoryConditionOutput(*(torch.cat(pair) for pair in pairs))


def test_guidance_leads_away_from_the_second_conditions(decoder, conditions, two_conditions):
    ids = torch.tensor([[1]])
    away = StoryConditionOutput(*(part[1:] for part in two_conditions.to_tuple()))
    for _ in range(6):
        wanted, unwanted = (decoder(encoder_outputs=c, decoder_input_ids=ids).logits[:, -1] for c in (conditions, away))
        guided = unwanted + 2.5 * (wanted - unwanted)
        guided[:, [0, END, 3, *ids[0].tolist()]] = -torch.inf  # what cannot be written, and what was
        ids = torch.cat([ids, guided.argmax(-1, keepdim=True)], 1)
    options = SamplingOptions(
        temperature=1e-6, guidance=2.5, max_new_tokens=6, min_new_tokens=6, no_repeat_ngram_size=1
    )
    found = sample_passages(decoder, two_conditions, 3, generator(), options)
    assert all(torch.equal(row, ids[0]) for row in found.sequences)
    torch.testing.assert_close(found.log_probs[:1], decoder.score(conditions, ids))
    plain = dataclasses.replace(options, guidance=1.0)
    assert not torch.equal(found.sequences, sample_passages(decoder, conditions, 3, generator(), plain).sequences)
    same = [sample_passages(decoder, c, 3, generator(), plain).sequences for c in (conditions, two_conditions)]
    assert torch.equal(*same)


def test_a_guided_passage_goes_on_from_a_row(decoder, two_conditions, marks):
    options = SamplingOptions(temperature=2.0, max_sentence_tokens=9, guidance=1.5)
    found = sample_sentences(decoder, two_conditions, 8, generator(), options, marks)
    for row in range(8):
        draft = found.draft(row, pad_id=0)
        assert draft.state.shape[1] == 2
        torch.testing.assert_close(draft.state, begin(decoder, two_conditions, draft.written).state, rtol=0, atol=1e-5)


def test_a_seed_means_the_same_whatever_else_is_drawn(decoder, conditions):
    torch.manual_seed(1)
    first = sample(decoder, conditions, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, sample(decoder, conditions, seed=5))
    assert not torch.equal(first, sample(decoder, conditions, seed=6))


def test_lengths_and_endings(decoder, conditions):
    found = sample_passages(
        decoder, conditions, 30, generator(), SamplingOptions(max_new_tokens=12, min_new_tokens=4, temperature=3.0)
    )
    for row, finished in zip(found.sequences.tolist(), found.finished.tolist(), strict=True):
        words = row[1:]
        assert END not in words[:4] and finished == (END in words)
        if END in words:
            assert set(words[words.index(END) + 1 :]) <= {0}
    assert not torch.isin(found.sequences[:, 1:], torch.tensor([1, 3])).any()


def test_log_probs_are_the_models_own(decoder, conditions):
    options = SamplingOptions(max_new_tokens=12, temperature=2.0, presence_penalty=1.5, no_repeat_ngram_size=2)
    found = sample_passages(decoder, conditions, 6, generator(), options)
    torch.testing.assert_close(found.log_probs, decoder.score(conditions, found.sequences), rtol=0, atol=1e-4)


def test_drawing_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = probabilities.log().expand(20000, 4)

    def shares(**options):
        ids = draw(rows, generator(), SamplingOptions(temperature=1.0, **options))
        return torch.bincount(ids, minlength=4) / len(ids)

    torch.testing.assert_close(shares(top_p=1.0), probabilities, atol=0.015, rtol=0)
    # the fewest words that reach 0.7 are the first two
    torch.testing.assert_close(shares(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(top_p=1.0, top_k=1), torch.tensor([1.0, 0, 0, 0]))
    # a quarter of the most probable word's 0.5 leaves three
    expected = torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95
    torch.testing.assert_close(shares(top_p=1.0, min_p=0.25), expected, atol=0.015, rtol=0)
    torch.testing.assert_close(shares(top_p=1.0, min_p=1.0), torch.tensor([1.0, 0, 0, 0]))


def test_repeats_are_barred():
    log_probs = torch.zeros(2, 10)
    bar_repeats(log_probs, torch.tensor([[1, 5, 6, 7, 5, 6], [1, 5, 6, 7, 6, 5]]), 3)
    assert log_probs[0].isinf().nonzero().flatten().tolist() == [7]
    assert not log_probs[1].isinf().any()


def test_no_ngram_is_written_twice(decoder, conditions):
    options = SamplingOptions(max_new_tokens=25, no_repeat_ngram_size=2, temperature=0.5, min_new_tokens=20)
    out = sample_passages(decoder, conditions, 5, generator(), options).sequences
    for row in out.tolist():
        row = [i for i in row if i != 0]
        pairs = list(zip(row, row[1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_the_presence_penalty_makes_repeats_rarer_where_it_holds(decoder, conditions):
    def repeats(penalty, penalized=None):
        options = SamplingOptions(max_new_tokens=12, min_new_tokens=12, presence_penalty=penalty)
        out = sample_passages(decoder, conditions, 60, generator(), options, penalized).sequences
        return sum(len(row) - len(set(row)) for row in out.tolist())

    assert repeats(3.0) < repeats(0.0)
    assert repeats(3.0, torch.zeros(decoder.config.vocab_size)) == repeats(0.0)


# -- sentence by sentence ----------------------------------------------------------------------------------------------
def test_where_sentences_end(marks):
    stop, opening, closing, word = marks.stops[0], marks.opening, marks.closing, 99
    assert marks.ends([word, stop, word]) == [2]
    # “ a . ” b .   a stop within a quotation ends nothing, the mark after it does
    assert marks.ends([opening, word, stop, word, stop, closing, word, stop]) == [6, 8]
    assert marks.ends([opening, word, closing, word, stop]) == [5]
    assert marks.ends([opening, word, stop]) == []


def test_sentences_end_where_sentences_end(decoder, conditions, marks):
    options = SamplingOptions(temperature=2.0, max_sentence_tokens=9, max_new_tokens=70)
    found = sample_sentences(decoder, conditions, 40, generator(), options, marks)
    assert 0 < found.finished.sum() < 30
    for row, finished in zip(found.sequences.tolist(), found.finished.tolist(), strict=True):
        ids = [i for i in row[1:] if i != 0]
        assert END not in ids
        assert marks.ends(ids) == ([len(ids)] if finished else [])
        assert finished or len(ids) == 9


def test_the_last_quarter_is_not_waited_for(decoder, conditions, marks, monkeypatch):
    def over(sequences, start, marks):  # each time the first of those that go on: row r is over after r + 1 words
        return torch.arange(len(sequences)) == 0

    monkeypatch.setattr(modeling.sampling, "_sentence_over", over)
    options = SamplingOptions(max_sentence_tokens=90, max_new_tokens=90)
    found = sample_sentences(decoder, conditions, 40, generator(), options, marks)
    assert found.finished.tolist() == [True] * 30 + [False] * 10
    assert [sum(i != 0 for i in found.new_ids(row)) for row in range(40)] == [*range(1, 31), *[30] * 10]
    alone = sample_sentences(decoder, conditions, 3, generator(), options, marks)  # a quarter of three is nobody
    assert alone.finished.all()


def test_going_on_from_a_row_is_as_if_it_had_been_written_alone(decoder, conditions, marks):
    options = SamplingOptions(temperature=2.0, max_sentence_tokens=9)
    found = sample_sentences(decoder, conditions, 8, generator(), options, marks)
    greedy = SamplingOptions(temperature=1e-6, max_new_tokens=25)
    for row in range(8):
        draft = found.draft(row, pad_id=0)
        assert draft.written == [i for i in found.new_ids(row) if i != 0]
        fresh = begin(decoder, conditions, draft.written)
        torch.testing.assert_close(draft.state, fresh.state, rtol=0, atol=1e-5)
        on = sample_passages(decoder, conditions, 1, generator(), greedy, start=draft)
        again = sample_passages(
            decoder, conditions, 1, generator(), greedy, start=dataclasses.replace(fresh, context=0)
        )
        assert torch.equal(on.sequences, again.sequences)


def test_a_passage_ends_where_the_decoder_ends_it_but_not_too_early(conditions, marks):
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.words.head_bias[END] += 12
    start = begin(decoder, conditions, [6, 7, marks.stops[0]])
    start = dataclasses.replace(start, context=0)

    def declined(**options):
        found = [
            sample_sentences(decoder, conditions, 2, generator(seed), SamplingOptions(**options), marks, start=start)
            for seed in range(40)
        ]
        return sum(f is None for f in found) / len(found)

    output = decoder(decoder_input_ids=start.ids[None], encoder_outputs=conditions).logits[0, -1]
    expected = float(output[END].detach().exp())
    assert 0.3 < expected < 0.7
    assert declined(temperature=1.0, top_p=1.0) == pytest.approx(expected, abs=0.2)
    assert declined(temperature=1.0, top_p=1.0, min_new_tokens=4) == 0
    # what was only read does not count as written
    empty = dataclasses.replace(start, context=3)
    assert sample_sentences(decoder, conditions, 2, generator(), SamplingOptions(), marks, start=empty) is not None


def test_options_are_a_part_of_the_story_options():
    from modeling import StoryOptions

    assert {f.name for f in dataclasses.fields(SamplingOptions)} <= {f.name for f in dataclasses.fields(StoryOptions)}
