"""The recipe of 2015: the most probable passage for the shifted vector alone (github.com/ryankiros/neural-storyteller).

The decoder sees x - c + s b and nothing else: no words, no page, nothing of the story so far; its passage is found by
beam search. How many captions x is the mean of (k, `num_captions` or `nearest_sentences`) and how wide the search is
(bw, `beam_width`) are the original's two settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .beam_search import beam_passages
from .errors import ModelFolderError
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .story_types import Candidate, Written
from .text import clean_text
from .writer import PassageTask

STOPS = (".", "!", "?", "…", "...")
MOST_TOKENS, LEAST_TOKENS = 70, 25  # words and marks of a passage


class NeuralStorytellerWriter:
    """Writes with a story decoder.

    Args:
        decoder, tokenizer: The model; None where a pipeline has none.
    """

    separator = " "

    def __init__(self, decoder: PictaleStoryDecoderForConditionalGeneration | None, tokenizer: Any = None) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer

    def prepare(self) -> None:
        """Raises ModelFolderError if the pipeline has no story decoder."""
        if self.decoder is None:
            raise ModelFolderError(
                "This pipeline has no story decoder for the recipe of 2015 ('decoder' in its pipeline.json): choose "
                "another writer, or train one with training.train_story_decoder."
            )

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage, whole."""
        self.prepare()
        decoder = self.decoder
        with torch.no_grad():
            conditions = decoder.conditions(torch.from_numpy(task.thought)[None].to(decoder.device))
        found = beam_passages(decoder, conditions, task.options.beam_width, MOST_TOKENS, LEAST_TOKENS)
        candidates = []
        for ids, log_prob, finished in zip(found.sequences, found.log_probs.tolist(), found.finished, strict=True):
            text = self._text([i for i in ids[1:].tolist() if i != decoder.config.pad_token_id], not finished)
            candidates.append(Candidate(text, log_prob, {"likelihood": log_prob}))
        yield Written(candidates[0].text, (tuple(candidates),))

    def _text(self, ids: list[int], cut: bool) -> str:
        """Readable text of ids; with `cut` it ends with the last whole sentence, if that is not too early."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if cut:
            ends = max(text.rfind(mark) for mark in STOPS)
            if ends > len(text) // 3:
                closing = 2 if text[ends + 1 : ends + 3] == " ”" else 0
                text = text[: ends + 1 + closing]
        return clean_text(text)
