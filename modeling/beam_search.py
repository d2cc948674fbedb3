"""Beam search as neural-storyteller ran it (github.com/ryankiros/neural-storyteller, `search.py`).

The most probable passage in all, without normalisation by length; a passage that ends leaves one beam less. It shares
conditions and barred words with `sampling.py`. `GenerationMixin.generate` would do, at 50 beams in ten times the time:
it ranks all beams' words at once.

Shapes: B live beams, W beam width, T ids from `<s>` on, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput
from .sampling import Continuations, Draft, SamplingOptions, bar_words, begin


@torch.no_grad()
def beam_passages(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    width: int,
    options: SamplingOptions,
    start: Draft | None = None,
) -> Continuations:
    """The `width` most probable passages found, best first.

    Args:
        decoder, conditions: The model, and what its `conditions` made of one thought and its content words.
        width: W; 1 is greedy search.
        options: Of these the lengths and `no_repeat_ngram_size`; nothing is drawn.
        start: What to go on from; None: an empty passage.
    """
    start = start or begin(decoder, conditions)
    end = decoder.config.eos_token_id
    sequences = start.ids.unsqueeze(0)  # [B, T], at first one beam
    states, total = start.state, torch.zeros(1, device=sequences.device)
    states = None if states is None else states.unsqueeze(2)  # [L, 1, B, H]
    done: list[tuple[float, torch.Tensor, torch.Tensor, bool]] = []
    for step in range(options.max_new_tokens - len(start.written)):
        log_probs, states = decoder.step(conditions, sequences[None, :, -1], states)
        log_probs = log_probs[0]  # [B, V]
        # the first word is never the end: neural-storyteller threw an empty passage away afterwards
        early = len(start.written) + step < max(options.min_new_tokens, 1)
        bar_words(log_probs, sequences, decoder, options, no_end=early)
        best, words = log_probs.topk(min(width - len(done), log_probs.size(1)))  # [B, W]: no row can give more
        best = (total.unsqueeze(1) + best).flatten()  # [B * W]
        total, places = best.topk(min(width - len(done), int(best.isfinite().sum())))
        rows = places // words.size(1)
        sequences = torch.cat([sequences[rows], words.flatten()[places].unsqueeze(1)], 1)
        states = states.index_select(2, rows)
        over = sequences[:, -1] == end
        done += [(float(total[i]), sequences[i], states[:, 0, i], True) for i in over.nonzero().flatten().tolist()]
        sequences, states, total = sequences[~over], states[:, :, ~over], total[~over]
        if len(done) >= width or not len(sequences):
            break
    done += [(float(total[i]), sequences[i], states[:, 0, i], False) for i in range(len(sequences))]
    done.sort(key=lambda beam: -beam[0])
    totals, rows, last, finished = zip(*done, strict=True)
    lengths = torch.tensor([len(row) - len(start.ids) for row in rows])
    return Continuations(
        pad_sequence(list(rows), batch_first=True, padding_value=decoder.config.pad_token_id),
        torch.stack(last, 1).unsqueeze(1),
        torch.tensor(totals) / lengths.clamp_min(1),
        torch.tensor(finished),
        start,
    )
