"""Sampling of passages with a generator of its own.

`GenerationMixin.generate` draws from torch's global random state and sorts the whole vocabulary at every word. For a
page that tells stories to several visitors at once, a seed must mean the same story whatever else is drawn, and
sorting 20,000 words takes longer than the model. This loop draws from a `torch.Generator` and looks at the `top_k` most
probable words only; everything else is as in `generate`.

Shapes: N passages, V vocabulary, K words considered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput


@dataclass(frozen=True)
class SamplingOptions:
    """How words are drawn.

    Args:
        temperature: Divides the log-probabilities; towards 0 the most probable word is always taken.
        top_k: Words considered at each step.
        top_p: Of these, the fewest whose probabilities reach this share (Holtzman et al., arXiv:1904.09751).
        presence_penalty: Taken from a word's log-probability for each time it stands in the passage already.
        no_repeat_ngram_size: No sequence of so many words is written twice in a passage; 0 allows it.
        min_new_tokens, max_new_tokens: Length without `<s>`, `</s>` counted.
    """

    temperature: float = 0.8
    top_k: int = 128
    top_p: float = 0.92
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    max_new_tokens: int = 70


@torch.no_grad()
def sample_passages(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    conditions: StoryConditionOutput,
    count: int,
    generator: torch.Generator,
    options: SamplingOptions,
    penalized: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write `count` passages under the same conditions (those of a batch of one).

    Args:
        decoder, conditions: The model, and what its `conditions` made of one thought and its content words.
        count: N.
        generator: On the decoder's device.
        options: How words are drawn.
        penalized: 1 for words that `presence_penalty` holds for [V], 0 for words a text must repeat; None: all.

    Returns:
        Ids [count, T] from `<s>` on, `<pad>` after `</s>`; a passage that was cut off by the length has no `</s>`.
    """
    config = decoder.config
    conditions = StoryConditionOutput(*(part.expand(count, *part.shape[1:]) for part in conditions.to_tuple()))
    device = conditions[0].device
    barred = [config.pad_token_id, *(decoder.generation_config.suppress_tokens or [])]
    sequences = torch.full((count, 1), config.decoder_start_token_id, device=device)
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    written = torch.zeros(count, config.vocab_size, device=device)  # times each word was written
    weight = options.presence_penalty if penalized is None else options.presence_penalty * penalized
    state = None
    for step in range(options.max_new_tokens):
        output = decoder(
            decoder_input_ids=sequences[:, -1:], encoder_outputs=conditions, past_key_values=state, use_cache=True
        )
        state = output.past_key_values
        log_probs = output.logits[:, -1] - weight * written  # [N, V]
        log_probs[:, barred] = -torch.inf
        if step < options.min_new_tokens:
            log_probs[:, config.eos_token_id] = -torch.inf
        bar_repeats(log_probs, sequences, options.no_repeat_ngram_size)
        chosen = draw(log_probs, generator, options).masked_fill(finished, config.pad_token_id)  # [N]
        written.scatter_add_(1, chosen.unsqueeze(1), written.new_ones(count, 1))
        sequences = torch.cat([sequences, chosen.unsqueeze(1)], 1)
        finished |= chosen == config.eos_token_id
        if finished.all():
            break
    return sequences


def draw(log_probs: torch.Tensor, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
    """One word for each row of log-probabilities [N, V] -> ids [N]."""
    values, ids = log_probs.topk(min(options.top_k, log_probs.size(-1)))  # [N, K], falling
    probabilities = (values / options.temperature).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the more probable words
    probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)  # the first always stays
    return ids.gather(1, probabilities.multinomial(1, generator=generator)).squeeze(1)


def bar_repeats(log_probs: torch.Tensor, sequences: torch.Tensor, size: int) -> None:
    """Set to -inf, in place, each word that would complete an n-gram of `size` already in its row."""
    if size < 1 or sequences.size(1) < size:
        return
    for row, ids in enumerate(sequences.tolist()):
        last = ids[len(ids) - size + 1 :]
        for start in range(len(ids) - size + 1):
            if ids[start : start + size - 1] == last:
                log_probs[row, ids[start + size - 1]] = -torch.inf
