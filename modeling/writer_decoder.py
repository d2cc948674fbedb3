"""The embedded writer: passages by the story decoder, the best of several candidates sentence by sentence.

All candidates for a sentence are one batch. The best is kept, the decoder goes back to the state it had at that
sentence's end, and the next sentence's candidates start there; the words that have not been told yet are then asked for
first. Choosing sentences costs little more than choosing whole passages, chooses among far more texts, and lets a
reader see the first sentence while the second is being written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .beam_search import beam_passages
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput
from .reranking import Proposal, Ranking, Wish
from .sampling import (
    Continuations,
    Draft,
    SamplingOptions,
    SentenceMarks,
    begin,
    runs_of,
    sample_passages,
    sample_sentences,
)
from .story_thread import last_words
from .story_types import Candidate, StoryOptions, Written
from .text import clean_text, content_words, is_content_word
from .word_forms import taken_up
from .writer import PassageTask

STOPS = (".", "!", "?", "…", "...")
COPIED_WORDS = 6  # words and marks in a row that a passage must not share with the page whose events it follows
OPENING = 0.5  # how far the first sentence about a photo follows a plot, of how far the others do
BACKGROUND_WORDS = 2  # how many of the words already told a decoder is still shown
SHORTEST_SENTENCE = 5  # words and marks that must be left of a passage for another sentence to be worth beginning


class DecoderWriter:
    """Writes with a story decoder.

    Args:
        decoder, tokenizer: The model.
        ranking: Makes the `Ranking` of a passage.
    """

    separator = " "

    def __init__(
        self,
        decoder: PictaleStoryDecoderForConditionalGeneration,
        tokenizer: Any,
        ranking: Callable[[Wish, StoryOptions], Ranking],
    ) -> None:
        self.decoder, self.tokenizer, self.ranking = decoder.eval(), tokenizer, ranking
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._content_mask = torch.tensor([float(is_content_word(w)) for w in words], device=decoder.device)
        self._marks = sentence_marks(self.vocabulary)

    def prepare(self) -> None:
        """Nothing: the models are there."""

    def known(self, words: Sequence[str]) -> dict[str, int]:
        """Words the decoder knows, with their ids; a name known only with a capital counts too."""
        found = {}
        for word in words:
            forms = (form for form in (word, word.capitalize()) if form in self.vocabulary)
            if (form := next(forms, None)) is not None:
                found[word] = self.vocabulary[form]
        return found

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage as it grows; the last item is the whole of it."""
        if task.options.choose == "sentence" and not task.options.beam_width:
            yield from self._by_sentence(task)
        else:
            yield self._whole(task)

    # -- sentence by sentence ----------------------------------------------------------------------------------------
    def _by_sentence(self, task: PassageTask) -> Iterator[Written]:
        options = task.options
        ranking = self.ranking(task.wish, options)
        generator = torch.Generator(self.decoder.device).manual_seed(task.seed)
        draft = self._begin(task)
        choices: list[tuple[Candidate, ...]] = []
        plot = () if task.events is None else task.events.thoughts
        page = last_words(task.events.page, self.vocabulary, sys.maxsize) if len(plot) else []
        copies = runs_of([self.vocabulary.get(word, -1) for word in page], COPIED_WORDS)
        while options.max_new_tokens - len(draft.written) >= (SHORTEST_SENTENCE if choices else 1):
            event = plot[len(choices)] if len(choices) < len(plot) else None
            if len(plot) and event is None and len(draft.written) >= options.min_new_tokens:
                break  # the plot is told
            sampling = _sampling(options)
            if event is not None:  # before that the passage is not over
                sampling = dataclasses.replace(sampling, min_new_tokens=options.max_new_tokens)
            found = sample_sentences(
                self.decoder,
                self._conditions(task, ranking.text, event),
                options.candidates,
                generator,
                sampling,
                self._marks,
                self._content_mask,
                draft,
                copies,
            )
            if found is None:
                break
            candidates = ranking.score(self._proposals(found, cut=False), event)
            best = max(range(len(candidates)), key=lambda i: candidates[i].score)
            draft = found.draft(best, self.decoder.config.pad_token_id)
            ranking.keep(best, self._text(draft.written))
            if event is not None:
                candidates = [dataclasses.replace(c, follows=task.events.source) for c in candidates]
            choices.append(tuple(sorted(candidates, key=lambda c: -c.score)))
            if settled := self._settled(draft.written):
                yield Written(settled, tuple(choices))
        yield Written(self._settled(draft.written) or self._text(draft.written, cut=True), tuple(choices))

    def _settled(self, ids: Sequence[int]) -> str:
        """The text up to the last end of a sentence: what comes later does not change it."""
        ends = self._marks.ends(ids)
        return self._text(ids[: ends[-1]]) if ends else ""

    # -- whole passages ----------------------------------------------------------------------------------------------
    def _whole(self, task: PassageTask) -> Written:
        options = task.options
        draft, conditions = self._begin(task), self._conditions(task, "")
        if options.beam_width:
            found = beam_passages(self.decoder, conditions, options.beam_width, _sampling(options), draft)
        else:
            generator = torch.Generator(self.decoder.device).manual_seed(task.seed)
            mask = self._content_mask
            count = options.candidates
            found = sample_passages(self.decoder, conditions, count, generator, _sampling(options), mask, draft)
        candidates = self.ranking(task.wish, options).score(self._proposals(found, cut=True))
        if options.recipe == "pictale":
            candidates.sort(key=lambda c: -c.score)
        return Written(candidates[0].text, (tuple(candidates),))

    # -- to and from the decoder -------------------------------------------------------------------------------------
    @torch.no_grad()
    def _conditions(self, task: PassageTask, told: str, event: np.ndarray | None = None) -> StoryConditionOutput:
        """Conditions of a batch of one; of the words that `told` has already, only a few are shown again.

        Args:
            event: What the next sentence follows beside the picture [D].
        """
        wish, fading = task.wish, task.options.fading
        words = wish.content[: task.options.content_words]
        done = taken_up(words, content_words([f"{wish.before} {told}" if fading else told]))
        shown = [word for word in words if word not in done] + done[:BACKGROUND_WORDS]
        told_share = fading * len(done) / len(words) if words else 0.0
        picture, plot = 1 - told_share, 0.0 if event is None else task.options.plot
        if task.new_photo and not told:
            plot *= OPENING  # which is about the photo first of all
        thought = task.thought - task.options.focus * (1 - picture * (1 - plot)) * wish.seen
        if event is not None:
            thought = thought + plot * event
        task = dataclasses.replace(task, thought=thought.astype(np.float32))
        found = self.decoder.conditions(**self._told(task, [*self.known(shown).values()]))
        if task.options.guidance == 1 or task.options.beam_width:
            return found
        away = self.decoder.conditions(**self._told(task, [], of_picture=False))
        content, mask = (torch.cat([part, torch.zeros_like(part)]) for part in found.to_tuple()[1:])
        return StoryConditionOutput(torch.cat([found[0], away[0]]), content, mask)

    def _told(self, task: PassageTask, words: Sequence[int], of_picture: bool = True) -> dict[str, Any]:
        """What the decoder's conditions are made of; without `of_picture`, for a passage about nothing in no style."""
        device, style = self.decoder.device, task.wish.style
        accent = task.options.strength * task.options.accent
        thought = task.thought
        if not of_picture:
            thought, accent = self._middle(task), 0.0
        return {
            "thought": torch.from_numpy(thought)[None].to(device),
            "previous_thought": None if task.previous is None else torch.from_numpy(task.previous)[None].to(device),
            "content_ids": torch.tensor([words or [0]], device=device),
            "style": None if style is None else torch.from_numpy(style)[None].to(device),
            "strength": accent,
        }

    def _middle(self, task: PassageTask) -> np.ndarray:
        """The thought of a passage of which neither style nor subject is known."""
        if self.decoder.conditions.style is not None:
            return self.decoder.conditions.style.center.float().cpu().numpy()
        return np.zeros_like(task.thought) if task.wish.style is None else task.wish.style

    @torch.no_grad()
    def _begin(self, task: PassageTask) -> Draft:
        words = last_words(task.wish.before, self.vocabulary, task.options.context_tokens)
        context = [self.vocabulary.get(word, self.tokenizer.unk_token_id) for word in words]
        return begin(self.decoder, self._conditions(task, ""), context)

    def _proposals(self, found: Continuations, cut: bool) -> list[Proposal]:
        pad = self.decoder.config.pad_token_id
        proposals = []
        for row, finished in enumerate(found.finished.tolist()):
            text = self._text([i for i in found.new_ids(row) if i != pad], cut and not finished)
            proposals.append(Proposal(text, float(found.log_probs[row]), finished))
        return proposals

    def _text(self, ids: Sequence[int], cut: bool = False) -> str:
        """Readable text of ids; with `cut` it ends with the last whole sentence, if that is not too early."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if cut:
            ends = max(text.rfind(mark) for mark in STOPS)
            if ends > len(text) // 3:
                closing = 2 if text[ends + 1 : ends + 3] == " ”" else 0
                text = text[: ends + 1 + closing]
        return clean_text(text)


def sentence_marks(vocabulary: Mapping[str, int]) -> SentenceMarks:
    """The marks by which sentences end, for a decoder with this vocabulary."""
    stops = tuple(vocabulary[mark] for mark in STOPS if mark in vocabulary)
    return SentenceMarks(stops, vocabulary.get("“", -1), vocabulary.get("”", -1))


def _sampling(options: StoryOptions) -> SamplingOptions:
    return SamplingOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(SamplingOptions)})
