"""Sampling of passages with a generator of its own, whole or sentence by sentence.

`GenerationMixin.generate` draws from torch's global random state and sorts the whole vocabulary at every word. For a
page that tells stories to several visitors at once, a seed must mean the same story whatever else is drawn, and
sorting 20,000 words takes longer than the model. This loop draws from a `torch.Generator` and looks at the `top_k` most
probable words only; everything else is as in `generate`. It can also stop at the end of a sentence and go on from the
one that was liked best, which `generate` cannot.

With conditions of a batch of two the second is what a passage should lead away from, and words are drawn by

    log p(w | second) + g (log p(w | first) - log p(w | second))

(guidance without a classifier, Sanchez et al., arXiv:2306.17806): g above 1 brings out what the first says and the
second does not. Both read every word.

Shapes: N passages, G conditions (1 or 2), T ids from `<s>` on, V vocabulary, K words considered, L layers, H state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput

STRAGGLERS = 0.25  # share of the sentences of a batch that is not waited for


@dataclass(frozen=True)
class SamplingOptions:
    """How words are drawn.

    Args:
        temperature: Divides the log-probabilities; towards 0 the most probable word is always taken.
        top_k: Words considered at each step.
        top_p: Of these, the fewest whose probabilities reach this share (Holtzman et al., arXiv:1904.09751).
        min_p: Of these, those at least so probable in proportion to the most probable one (arXiv:2407.01082); 0: all.
        presence_penalty: Taken from a word's log-probability for each time it stands in the passage already.
        guidance: g above, where there are two conditions.
        no_repeat_ngram_size: No sequence of so many words is written twice in a passage; 0 allows it.
        min_new_tokens, max_new_tokens: Length without `<s>`, `</s>` counted.
        max_sentence_tokens: Where passages are written sentence by sentence, the longest sentence.
    """

    temperature: float = 0.8
    top_k: int = 128
    top_p: float = 0.92
    min_p: float = 0.0
    presence_penalty: float = 0.0
    guidance: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    max_new_tokens: int = 70
    max_sentence_tokens: int = 40


@dataclass(frozen=True)
class Draft:
    """A passage in the making.

    Args:
        ids: From `<s>` on [T].
        state: Of the decoder before it reads the last id [L, G, H]; None where it has read nothing.
        context: How many ids after `<s>` belong to the text before: read, not written.
    """

    ids: torch.Tensor
    state: torch.Tensor | None = None
    context: int = 0

    @property
    def written(self) -> list[int]:
        """Ids of the passage itself, without `<s>`."""
        return self.ids[1 + self.context :].tolist()


@dataclass(frozen=True)
class Continuations:
    """N ways to go on from one draft.

    Args:
        sequences: From `<s>` on [N, T], `<pad>` after the end of a row.
        states: Of the decoder before it reads the last id of each row [L, G, N, H].
        log_probs: Mean log-probability of the new ids under the (first) conditions, whatever they were drawn from [N].
        finished: Whether a row came to its end within the length [N].
        start: What they go on from.
    """

    sequences: torch.Tensor
    states: torch.Tensor
    log_probs: torch.Tensor
    finished: torch.Tensor
    start: Draft

    def draft(self, row: int, pad_id: int) -> Draft:
        """A row as something to go on from."""
        ids = self.sequences[row]
        return Draft(ids[ids != pad_id], self.states[:, :, row], self.start.context)

    def new_ids(self, row: int) -> list[int]:
        """What a row adds to the draft."""
        return self.sequences[row, len(self.start.ids) :].tolist()


@dataclass(frozen=True)
class SentenceMarks:
    """Ids of the marks that end sentences and of the quotation marks, by which sentences are told apart."""

    stops: tuple[int, ...]
    opening: int
    closing: int

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Places in `ids` after which a sentence is over: a stop, or the closing mark after one, outside quotations."""
        places, is_open, before = [], False, -1
        for place, token in enumerate(ids):
            if token == self.opening:
                is_open = True
            elif token == self.closing:
                is_open = False
            if not is_open and (token in self.stops or (token == self.closing and before in self.stops)):
                places.append(place + 1)
            before = token
        return places


@torch.no_grad()
def begin(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    context: Sequence[int] = (),
) -> Draft:
    """An empty passage; `context` are ids of the text before, which the decoder reads as if it had written them."""
    device = conditions[0].device
    ids = torch.tensor([decoder.config.decoder_start_token_id, *context], device=device)
    if not context:
        return Draft(ids)
    read = ids[:-1].expand(len(conditions[0]), -1)
    output = decoder(decoder_input_ids=read, encoder_outputs=conditions, use_cache=True)
    return Draft(ids, output.cache.h, len(context))


def sample_passages(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    count: int,
    generator: torch.Generator,
    options: SamplingOptions,
    penalized: torch.Tensor | None = None,
    start: Draft | None = None,
) -> Continuations:
    """Write `count` passages to their end under the same conditions (those of a batch of one, or of two: see above).

    Args:
        decoder, conditions: The model, and what its `conditions` made of one thought and its content words.
        count: N.
        generator: On the decoder's device.
        options: How words are drawn.
        penalized: 1 for words that `presence_penalty` holds for [V], 0 for words a text must repeat; None: all.
        start: What to go on from; None: an empty passage.

    Returns:
        The passages; one that was cut off by the length is not `finished` and has no `</s>`.
    """
    start = start or begin(decoder, conditions)
    found = _sample(decoder, conditions, count, generator, options, penalized, start, None, {})
    assert found is not None  # only a sentence may be declined
    return found


def sample_sentences(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    count: int,
    generator: torch.Generator,
    options: SamplingOptions,
    marks: SentenceMarks,
    penalized: torch.Tensor | None = None,
    start: Draft | None = None,
    copies: Mapping[tuple[int, ...], Sequence[int]] | None = None,
) -> Continuations | None:
    """Write `count` next sentences for the passage `start`, or None: the decoder ends the passage here.

    A sentence is `finished` if it ended within `max_sentence_tokens` and what `max_new_tokens` leaves of the passage,
    and before all but `STRAGGLERS` of the others had: a few endless sentences would take as long as all the rest.
    What `copies` (`runs_of` some text) holds is not said in the same words. The other arguments are those of
    `sample_passages`.
    """
    start = start or begin(decoder, conditions)
    return _sample(decoder, conditions, count, generator, options, penalized, start, marks, copies or {})


@torch.no_grad()
def _sample(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    count: int,
    generator: torch.Generator,
    options: SamplingOptions,
    penalized: torch.Tensor | None,
    start: Draft,
    marks: SentenceMarks | None,
    copies: Mapping[tuple[int, ...], Sequence[int]],
) -> Continuations | None:
    config = decoder.config
    device, sides = conditions[0].device, len(conditions[0])  # G
    sequences = start.ids.expand(count, -1)  # [N, T]
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    total, length = torch.zeros(count, device=device), torch.zeros(count, device=device)
    already = start.written
    weight = torch.full((config.vocab_size,), options.presence_penalty, device=device)
    weight = weight if penalized is None else weight * penalized
    limit = options.max_new_tokens - len(already)
    limit = limit if marks is None else min(limit, options.max_sentence_tokens)
    rows = torch.arange(count, device=device)  # [A]: those that still go on; nothing is computed for the others
    states = None if start.state is None else start.state.unsqueeze(2).expand(-1, -1, count, -1)  # [L, G, A, H]
    ends = None if states is None else states.contiguous()  # [L, G, N, H]
    for step in range(limit):
        going = sequences[rows]  # [A, T]
        by_side, states = decoder.step(conditions, going[:, -1].expand(sides, -1), states)  # [G, A, V]
        ends = states if ends is None else ends.index_copy(2, rows, states)
        raw = by_side[0]
        log_probs = torch.lerp(by_side[1], raw, options.guidance) if sides > 1 else raw.clone()
        written = going[:, 1 + start.context :]
        log_probs.scatter_add_(1, written, -weight[written])  # for each time a word was written
        early = len(already) + step < options.min_new_tokens
        may_decline = marks is not None and step == 0 and already and not early
        if may_decline and draw(log_probs[:1], generator, options) == config.eos_token_id:
            return None  # all rows stand at the same place, so the first speaks for all
        bar_words(log_probs, going, decoder, options, no_end=early or marks is not None)
        bar_copies(log_probs, going, copies)
        chosen = draw(log_probs, generator, options)  # [A]
        total[rows] += raw.gather(1, chosen.unsqueeze(1)).squeeze(1)
        length[rows] += 1
        ids = sequences.new_full((count,), config.pad_token_id).index_copy(0, rows, chosen)
        sequences = torch.cat([sequences, ids.unsqueeze(1)], 1)
        over = chosen == config.eos_token_id if marks is None else _sentence_over(sequences[rows], start, marks)
        finished[rows] = over
        waiting = 0 if marks is None else int(STRAGGLERS * count)
        if int((~finished).sum()) <= waiting:
            break
        rows, states = rows[~over], states[:, :, ~over]
    return Continuations(sequences, ends, total / length.clamp_min(1), finished, start)


def _sentence_over(sequences: torch.Tensor, start: Draft, marks: SentenceMarks) -> torch.Tensor:
    """Whether each row's last id ends a sentence [N]; quotations are counted from the beginning of the passage."""
    rows = sequences[:, 1 + start.context :].tolist()
    return torch.tensor([len(row) in marks.ends(row)[-1:] for row in rows], device=sequences.device)


def draw(log_probs: torch.Tensor, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
    """One word for each row of log-probabilities [N, V] -> ids [N]."""
    probabilities, ids = considered(log_probs, options)
    return ids.gather(1, probabilities.multinomial(1, generator=generator)).squeeze(1)


def considered(log_probs: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """The words that are drawn from: weights [N, K], falling, 0 for the unlikely, and ids [N, K]."""
    values, ids = log_probs.topk(min(options.top_k, log_probs.size(-1)))  # [N, K], falling
    probabilities = (values / options.temperature).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the more probable words
    unlikely = (before >= options.top_p) | (probabilities < options.min_p * probabilities[:, :1])
    return probabilities.masked_fill(unlikely, 0.0), ids  # the first always stays


def bar_words(
    log_probs: torch.Tensor,
    sequences: torch.Tensor,
    decoder: PictaleStoryDecoderForConditionalGeneration,
    options: SamplingOptions,
    no_end: bool,
) -> None:
    """Set to -inf, in place, what must not be written: `<unk>` and its like, repeats, and with `no_end` the end."""
    log_probs[:, [decoder.config.pad_token_id, *(decoder.generation_config.suppress_tokens or [])]] = -torch.inf
    if no_end:
        log_probs[:, decoder.config.eos_token_id] = -torch.inf
    bar_repeats(log_probs, sequences, options.no_repeat_ngram_size)


def bar_repeats(log_probs: torch.Tensor, sequences: torch.Tensor, size: int) -> None:
    """Set to -inf, in place, each word that would complete an n-gram of `size` already in its row."""
    if size < 1 or sequences.size(1) < size:
        return
    for row, ids in enumerate(sequences.tolist()):
        last = ids[len(ids) - size + 1 :]
        for start in range(len(ids) - size + 1):
            if ids[start : start + size - 1] == last:
                log_probs[row, ids[start + size - 1]] = -torch.inf


def runs_of(ids: Sequence[int], size: int) -> dict[tuple[int, ...], list[int]]:
    """The sequences of `size` ids in a text: what follows each sequence of `size - 1`; none for size 0."""
    runs: dict[tuple[int, ...], list[int]] = {}
    for end in range(size - 1, len(ids)) if size > 0 else ():
        if ids[end] >= 0:  # below 0: a word that cannot be written
            runs.setdefault(tuple(ids[end - size + 1 : end]), []).append(ids[end])
    return runs


def bar_copies(log_probs: torch.Tensor, sequences: torch.Tensor, runs: Mapping[tuple[int, ...], Sequence[int]]) -> None:
    """Set to -inf, in place, each word that would complete one of the `runs_of` a text."""
    if not runs:
        return
    size = len(next(iter(runs)))
    for row, ids in enumerate(sequences[:, -size:].tolist()):
        if found := runs.get(tuple(ids)):
            log_probs[row, found] = -torch.inf
