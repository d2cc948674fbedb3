"""Beam search as neural-storyteller ran it (github.com/ryankiros/neural-storyteller, `search.py`).

The most probable passage in all, without normalisation by length; a passage that ends leaves one beam less.
`GenerationMixin.generate` would do, at 50 beams in ten times the time: it ranks all beams' words at once.

Shapes: B live beams, W beam width, T ids from `<s>` on, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput


@dataclass(frozen=True)
class BeamPassages:
    """W passages, best first.

    Args:
        sequences: From `<s>` on [W, T], `<pad>` after the end of a row.
        log_probs: Mean log-probability of a row's ids after `<s>` [W].
        finished: Whether a row came to its end within the length [W].
    """

    sequences: torch.Tensor
    log_probs: torch.Tensor
    finished: torch.Tensor


@torch.no_grad()
def beam_passages(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    width: int,
    max_new_tokens: int,
    min_new_tokens: int = 1,
) -> BeamPassages:
    """The `width` most probable passages found, best first.

    Args:
        decoder, conditions: The model, and what its `conditions` made of one thought.
        width: W; 1 is greedy search.
        max_new_tokens, min_new_tokens: Length without `<s>`; the first word is never the end, since
            neural-storyteller threw an empty passage away afterwards.
    """
    config = decoder.config
    device = conditions[0].device
    barred = [config.pad_token_id, *(decoder.generation_config.suppress_tokens or [])]
    sequences = torch.full((1, 1), config.decoder_start_token_id, device=device)  # [B, T], at first one beam
    states, total = None, torch.zeros(1, device=device)
    done: list[tuple[float, torch.Tensor, bool]] = []
    for step in range(max_new_tokens):
        log_probs, states = decoder.step(conditions, sequences[None, :, -1], states)
        log_probs = log_probs[0].clone()  # [B, V]
        log_probs[:, barred] = -torch.inf
        if step < max(min_new_tokens, 1):
            log_probs[:, config.eos_token_id] = -torch.inf
        best, words = log_probs.topk(min(width - len(done), log_probs.size(1)))  # [B, W]: no row can give more
        best = (total.unsqueeze(1) + best).flatten()  # [B * W]
        total, places = best.topk(min(width - len(done), int(best.isfinite().sum())))
        rows = places // words.size(1)
        sequences = torch.cat([sequences[rows], words.flatten()[places].unsqueeze(1)], 1)
        states = states.index_select(2, rows)
        over = sequences[:, -1] == config.eos_token_id
        done += [(float(total[i]), sequences[i], True) for i in over.nonzero().flatten().tolist()]
        sequences, states, total = sequences[~over], states[:, :, ~over], total[~over]
        if len(done) >= width or not len(sequences):
            break
    done += [(float(total[i]), sequences[i], False) for i in range(len(sequences))]
    done.sort(key=lambda beam: -beam[0])
    totals, rows, finished = zip(*done, strict=True)
    lengths = torch.tensor([len(row) - 1 for row in rows])
    return BeamPassages(
        pad_sequence(list(rows), batch_first=True, padding_value=config.pad_token_id),
        torch.tensor(totals) / lengths.clamp_min(1),
        torch.tensor(finished),
    )
