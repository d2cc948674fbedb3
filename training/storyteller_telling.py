"""Stories that the storyteller tells of training photos, asked for exactly as at run time.

A prompt is a photo, what the captioner wrote and remembered of it, a style and a length; the pipeline finds the page
and puts the request together. With `candidates` 1 the stories of a prompt are written at once, each as the model tells
it; with more, one after the other as the page would tell them, every sentence the best of so many.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling.errors import DataError, RecipeError, StoryError
from modeling.pipeline_story import StoryPipeline
from modeling.story_prompt import GENRES, one_line, shortened_page
from modeling.story_types import LENGTHS, MAX_SEED, STORYTELLER, Caption, Written
from modeling.style_pages import Page
from modeling.writer import PassageTask
from modeling.writer_storyteller import StorytellerWriter

from .json_lines import JsonLines
from .storyteller_data import StoryRow, agrees

SEVERAL = "several"  # name of the writer that tells whole stories


@dataclass
class Telling:
    """The `telling` section: what is written in a round.

    Args:
        prompts: Photos that are told of, each in one style and length.
        stories: Of each prompt.
        candidates: Ways to go on after every sentence, of which the best is taken; 1: whole stories in one batch.
        styles: None: all of the pipeline that the storyteller knows by name.
        lengths: Share of the prompts of each length.
        temperature: Of the words; None: the pipeline's.
    """

    prompts: int = 2000
    stories: int = 4
    candidates: int = 1
    styles: list[str] | None = None
    lengths: dict[str, float] = field(default_factory=lambda: {"short": 0.2, "medium": 0.6, "long": 0.2})
    temperature: float | None = None

    def __post_init__(self) -> None:
        if min(self.prompts, self.stories, self.candidates) < 1:
            raise RecipeError("telling: prompts, stories and candidates are 1 or more.")
        if unknown := set(self.lengths) - set(LENGTHS) or set(self.styles or ()) - set(GENRES):
            known = ", ".join((*LENGTHS, *GENRES))
            raise RecipeError(f"telling: '{sorted(unknown)[0]}' is no length or style; choose from {known}.")
        if not sum(self.lengths.values()) > 0 or min(self.lengths.values()) < 0:
            raise RecipeError("telling.lengths are shares, at least one of them above 0.")


@dataclass(frozen=True)
class Prompt:
    """What is to be told: a row of the stories' data set gives photo and captions."""

    row: StoryRow
    style: str
    length: str
    seed: int


def choose_prompts(
    rows: Sequence[StoryRow], held: Collection[tuple[str, str]], styles: Sequence[str], telling: Telling, seed: Any
) -> list[Prompt]:
    """Photos at random, each once before any comes again, their styles in turn.

    Left out are photos that nothing was seen in, or something else than people see.

    Args:
        rows: Stories, whose photos are told of.
        held: Photos (data set and id) that are not to be learned from.
        seed: Of the draws.

    Raises:
        DataError: no photo is left, or no style.
    """
    rng = random.Random(str(seed))
    first: dict[tuple[str, str], StoryRow] = {}
    for row in rows:
        if row.seen and row.captions and not set(row.photos) & set(held) and agrees(row.seen[0], row.captions):
            first.setdefault(row.photo, row)
    if not first or not styles:
        raise DataError(
            "There is no photo to tell of: the stories need captions of the captioner's "
            "(`python -m training.caption_stories`) that agree with people's, and the pipeline a style."
        )
    chosen, styles = list(first.values()), list(styles)
    rng.shuffle(chosen)
    lengths, shares = zip(*telling.lengths.items(), strict=True)
    prompts = []
    for number in range(telling.prompts):
        turn, place = divmod(number, len(chosen))
        style = styles[(place + turn) % len(styles)]
        length = rng.choices(lengths, shares)[0]
        prompts.append(Prompt(chosen[place], style, length, rng.randrange(MAX_SEED)))
    return prompts


def styles_of(pipe: StoryPipeline, telling: Telling) -> list[str]:
    """The styles to tell in. Raises RecipeError for one that the pipeline does not have."""
    if missing := [name for name in telling.styles or () if name not in pipe.styles]:
        raise RecipeError(f"telling.styles: the pipeline has no style '{missing[0]}'.")
    return [name for name in (telling.styles or pipe.styles) if name in GENRES]


class ShownPages:
    """The pipeline's pages; remembers which was shown last."""

    def __init__(self, pages: Any) -> None:
        self.pages, self.last = pages, ""

    def __call__(self, task: PassageTask) -> Page | None:
        page = self.pages(task)
        self.last = shortened_page(page.text) if page else ""
        return page


class _Several(StorytellerWriter):
    """Whole stories, several at once; the pipeline gets the first, `told` has all."""

    count = 1

    def write(self, task: PassageTask) -> Iterator[Written]:
        self.told = self.tell_several(task, self.count)
        yield Written(self.told[2][0].text, title=self.told[0])


class Teller:
    """Tells the stories of prompts with one storyteller.

    Args:
        pipe: Whose captions, styles and pages are used.
        storyteller: Folder of the model, or its engine.
        telling: How many and how.
    """

    def __init__(self, pipe: StoryPipeline, storyteller: Any, telling: Telling) -> None:
        self.pipe, self.telling = pipe, telling
        if not isinstance(pipe.pages, ShownPages):
            pipe.pages = ShownPages(pipe.pages)
        pipe.use_storyteller(storyteller)
        self.writer = _Several(pipe.writers[STORYTELLER].engine, pipe.pages, lambda *_: None)
        self.writer.count = telling.stories
        pipe.writers[SEVERAL] = self.writer

    def close(self) -> None:
        """Let go of the model."""
        self.pipe.use_storyteller(None)
        del self.pipe.writers[SEVERAL]

    def tell(self, prompt: Prompt) -> list[dict[str, Any]]:
        """`title`, `text`, `page`, `log_prob` (mean of its tokens, where it is known) and whether it came to an end
        (`ended`) of each story."""
        row = prompt.row
        captions = [Caption(text, 0.0) for text in row.seen]
        captions += [Caption(text, 0.0, remembered=True) for text in row.recalled]
        options: dict[str, Any] = {"length": prompt.length, "candidates": self.telling.candidates}
        if self.telling.temperature is not None:
            options["temperature"] = self.telling.temperature
        if self.telling.candidates == 1:
            self.pipe.tell(captions, prompt.style, prompt.seed, writer=SEVERAL, **options)
            title, page, found = self.writer.told
            return [
                {
                    "title": title,
                    "text": one_line(one.text),
                    "page": page,
                    "log_prob": round(one.log_prob / max(len(one.ids), 1), 4),
                    "ended": one.ended in ("end", "stop"),
                }
                for one in found
            ]
        told = []
        for seed in np.random.SeedSequence(prompt.seed).generate_state(self.telling.stories) % MAX_SEED:
            try:
                result = self.pipe.tell(captions, prompt.style, int(seed), writer=STORYTELLER, **options)
            except StoryError:  # it has written nothing
                continue
            told.append(
                {
                    "title": one_line(result.title),
                    "text": one_line(result.story),
                    "page": self.pipe.pages.last,
                    "log_prob": None,
                    "ended": True,
                }
            )
        return told


def tell_prompts(teller: Any, prompts: Sequence[Prompt], kept: JsonLines, label: str = "") -> list[dict[str, Any]]:
    """The stories of all prompts; those that are kept already are not told again.

    Args:
        teller: Called without arguments for the `Teller`, if there is something to tell.
        kept: One record a prompt: `label`, `prompt` (its number), what was asked for, `stories`.
        label: Who tells, where a file has several.

    Returns:
        The records, in the order of the prompts.
    """
    done = {record["prompt"]: record for record in kept.records if record["label"] == label}
    left = [number for number in range(len(prompts)) if number not in done]
    made = teller() if left else None
    for number in tqdm(left, desc=f"telling {label}".strip(), unit="prompt", disable=not left):
        prompt = prompts[number]
        record = {
            "label": label,
            "prompt": number,
            "photo": list(prompt.row.photo),
            "style": prompt.style,
            "length": prompt.length,
            "seed": prompt.seed,
            "stories": made.tell(prompt),
        }
        kept.append([record])
        done[number] = record
    if made is not None:
        made.close()
    return [done[number] for number in range(len(prompts))]


def flat(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A record for each story: what was asked for, and the story."""
    return [
        {name: value for name, value in record.items() if name != "stories"} | {"story": number} | story
        for record in records
        for number, story in enumerate(record["stories"])
    ]
