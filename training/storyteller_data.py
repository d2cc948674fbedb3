"""What the storyteller learns from: prompts as at run time, and the stories that people's photos were told in.

Two kinds of source:

    stories   rows of `hub_configs/written-stories` (photo, captions, style, page, title, story, what comes next)
    tales     texts without a photo, told by the things in them: `Objects: dog, park`

Every epoch draws anew which share of each source is shown, which captions a prompt has (people's, the captioner's own,
or some of both), whether there is a page, and whether a story is told from its beginning or gone on with: a function of
(seed, epoch) only, so that a resumed run equals an uninterrupted one.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from modeling.errors import DataError
from modeling.story_prompt import GENRES, PAGE_STYLE, SONG, StoryPrompt, newest, one_line, shortened_page
from modeling.story_types import LENGTHS
from modeling.text import clean_text, content_words
from modeling.word_forms import base_form, taken_up

from .caption_sources import caption_source, read_split
from .data_text import LengthBatches, TextSource, load_rows

IGNORED = -100  # label of what is not learned
AGREES = 0.5  # least share of the words of the captioner's first caption that people's have, for it to be shown alone
MOST_BEFORE = 120  # words of the story so far
MOST_OBJECTS = 4


@dataclass
class Tales:
    """Texts without photos.

    Args:
        dataset: Hub id, folder or name below `$PICTALE_DATA`, with a column `text`.
        share: Of its texts that an epoch shows.
        kind: What they are called in the prompt.
        where: Only rows with one of these values, by column, as in `{"source": ["aesop"]}`.
        max_words: Longer texts are left out.
    """

    dataset: str
    share: float = 1.0
    kind: str = "a plain story"
    where: dict[str, list[str]] = field(default_factory=dict)
    max_words: int = 175


@dataclass
class StorytellerData:
    """The `data` section.

    Args:
        stories: Data set of stories about photos, see `hub_configs/written-stories`.
        shares: How many of the rows of each `manner` an epoch shows, as a share of them; 0 where not named.
        captions: Data sets of captioned photos, that give people's captions of the photos whose rows have none.
        tales: Further texts.
        people: Share of the prompts that have people's captions alone.
        mixed: Share that have one of people's and the captioner's; the rest has the captioner's alone.
        page: Share of the prompts in a book's style that show a page.
        unnamed: Share of those with a page that do not name the style.
        perhaps: Share with sentences that the photo brought to mind.
        objects: Share that name objects.
        go_on: Share of the stories with a next passage of which that is learned in place of the first.
        max_tokens: Longer examples are left out.
        batch_tokens: Padded tokens of a batch.
    """

    stories: str = "hub_configs/written-stories"
    shares: dict[str, float] = field(default_factory=lambda: {"plain": 1.0})
    captions: list[Any] = field(default_factory=list)
    tales: list[Any] = field(default_factory=list)
    people: float = 0.4
    mixed: float = 0.2
    page: float = 0.7
    unnamed: float = 0.15
    perhaps: float = 0.25
    objects: float = 0.2
    go_on: float = 0.6
    max_tokens: int = 640
    batch_tokens: int = 1400

    def __post_init__(self) -> None:
        self.tales = [tale if isinstance(tale, Tales) else Tales(**tale) for tale in self.tales]


@dataclass(frozen=True)
class StoryRow:
    """A story of a data set; `seen` are the captioner's captions and `recalled` what the photo brought to mind.

    `photos` are data set and id of the story's photo, and of the one that its next passage comes to.
    """

    style: str
    register: str
    manner: str
    length: str
    page: str
    captions: tuple[str, ...]
    seen: tuple[str, ...]
    recalled: tuple[str, ...]
    title: str
    story: str
    kind: str
    sentence: str = ""
    next: str = ""
    scene: tuple[str, ...] = ()
    scene_seen: tuple[str, ...] = ()
    photos: tuple[tuple[str, str], ...] = ()

    @property
    def photo(self) -> tuple[str, str]:
        """Data set and id of the photo that the story begins with."""
        return self.photos[0]


def read_stories(data: StorytellerData, split: str) -> list[StoryRow]:
    """The rows of a split, people's captions filled in by id where a data set of captions has them.

    Raises:
        DataError: not there, or no row has any caption.
    """
    rows = list(load_rows(TextSource(data.stories, split=split)))
    missing = {(row["photo_source"], row["photo_id"]) for row in rows if not row["captions"]}
    missing |= {tuple(row["photo2"]) for row in rows if row.get("photo2") and not row.get("captions2")}
    known = _captions_by_id(data.captions, missing)
    found = []
    for row in rows:
        people = row["captions"] or known.get((row["photo_source"], row["photo_id"]), ())
        scene = row.get("captions2") or known.get(tuple(row.get("photo2") or ()), ())
        story = StoryRow(
            style=row["style"],
            register=row["register"] or "",
            manner=row["manner"],
            length=row["length"],
            page=shortened_page(row["page"] or ""),
            captions=tuple(clean_text(text) for text in people),
            seen=tuple(row.get("seen") or ()),
            recalled=tuple(row.get("recalled") or ()),
            title=row["title"],
            story=row["story"],
            kind=row["kind"],
            sentence=row["sentence"] or "",
            next=row["next"] or "",
            scene=tuple(clean_text(text) for text in scene),
            scene_seen=tuple(row.get("seen2") or ()),
            photos=photos_of(row),
        )
        if story.captions or story.seen:
            found.append(story)
    if not found:
        raise DataError(f"No story of '{data.stories}' has a caption: name the captions' data set in data.captions.")
    return found


def photos_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """`(photo_source, photo_id)` of a row's photo, and of its second if it has one."""
    second = tuple(row.get("photo2") or ())
    return ((row["photo_source"], row["photo_id"]), *([second] if second else []))


def source_name(entry: Any) -> str:
    """What rows call a data set of captioned photos: the last part of its path."""
    return caption_source(entry).path.rstrip("/").rpartition("/")[2]


def _captions_by_id(sources: Sequence[Any], wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    known: dict[tuple[str, str], list[str]] = {}
    for entry in sources if wanted else ():
        photos = read_split(entry, "all")
        name = source_name(entry)
        for image_id, captions in zip(photos.image_ids, photos.captions, strict=True):
            if (name, image_id) in wanted:
                known[name, image_id] = list(captions)[:3]
    return known


# -- examples --------------------------------------------------------------------------------------------------------
def story_example(row: StoryRow, data: StorytellerData, rng: random.Random) -> tuple[StoryPrompt, str]:
    """A prompt about a story's photo, and the answer to it."""
    page = row.page if row.page and (row.style == "own" or rng.random() < data.page) else ""
    kind = _kind(row, bool(page), rng, data.unnamed)
    shows = _shown(row.captions, row.seen, data, rng)
    perhaps = rng.sample(row.recalled, rng.randint(1, min(3, len(row.recalled)))) if row.recalled else []
    prompt = StoryPrompt(
        kind,
        tuple(shows),
        row.length,
        page,
        tuple(perhaps) if rng.random() < data.perhaps else (),
        tuple(_objects(row.captions or row.seen, row.story, rng)) if rng.random() < data.objects else (),
    )
    if not row.next or rng.random() >= data.go_on:
        return prompt, f" {row.title}\nStory: {one_line(row.story)}"
    before = one_line(row.story)
    if row.kind == "one_then_sentence" and row.sentence:
        before = f"{before} {row.sentence}"
    length = _length_of(row.next)
    return (
        StoryPrompt(
            kind,
            prompt.shows,
            length,
            page,
            before=newest(before, MOST_BEFORE),
            scene=tuple(_shown(row.scene, row.scene_seen, data, rng)) if row.kind == "one_then_photo" else (),
        ),
        f" {one_line(row.next)}",
    )


def _kind(row: StoryRow, page: bool, rng: random.Random, unnamed: float) -> str:
    if row.style == "song":
        return SONG
    if row.style == "own":
        return row.register if row.register and rng.random() < 0.5 else PAGE_STYLE
    if page and rng.random() < unnamed:
        return PAGE_STYLE
    return GENRES[row.style][0]


def _shown(captions: Sequence[str], captioner: Sequence[str], data: StorytellerData, rng: random.Random) -> list[str]:
    """Captions of a prompt. The captioner's stand alone only where they are not plainly about something else: a story
    about a dog under the caption of a bear would teach to overlook captions."""
    people, seen = list(captions), list(captioner)
    if not people or not seen:
        return _some(people, rng) if people else seen[: rng.randint(1, max(len(seen), 1))]
    draw = rng.random()
    if draw < data.people:
        return _some(people, rng)
    if draw < data.people + data.mixed or not agrees(seen[0], people):
        return [rng.choice(people), *seen[: rng.randint(1, 2)]]
    return seen[: rng.randint(2, len(seen))] if len(seen) > 1 else seen


def _some(captions: list[str], rng: random.Random) -> list[str]:
    return rng.sample(captions, rng.randint(1, min(3, len(captions))))


def agrees(caption: str, people: Sequence[str]) -> bool:
    """Whether a caption of the captioner's says, at least by half, what people say of the photo."""
    words, known = content_words([caption]), content_words(people)
    return bool(words) and len(taken_up(words, known)) >= AGREES * len(words)


def _objects(captions: Sequence[str], story: str, rng: random.Random) -> list[str]:
    """Content words of the captions that the story has, too."""
    words = taken_up(content_words(captions), content_words([story]))
    return rng.sample(words, min(len(words), rng.randint(1, MOST_OBJECTS)))


def _length_of(text: str) -> str:
    words = len(text.split())
    return next((name for name, (_, most) in LENGTHS.items() if words <= most + 5), "long")


def tale_example(text: str, title: str, kind: str, picturable: Mapping[str, float], rng: random.Random) -> Any:
    """A prompt for a text without a photo: the things in it that photos show."""
    known = [word for word in content_words([text]) if base_form(word) in picturable]
    words = known[: 2 * MOST_OBJECTS]
    objects = rng.sample(words, min(len(words), rng.randint(2, MOST_OBJECTS)))
    prompt = StoryPrompt(kind, (), _length_of(text), objects=tuple(objects))
    return prompt, (f" {title}\nStory: {text}" if title else f"\nStory: {text}")


class StoryExamples(torch.utils.data.Dataset):
    """Token ids of an epoch: `{"prompt": [...], "answer": [...]}` each.

    Args:
        rows: Stories about photos.
        tales: `(text, title)` of each of `data.tales`.
        tokenizer: The storyteller's.
        data: Shares.
        seed: Of the draws.
    """

    def __init__(
        self,
        rows: Sequence[StoryRow],
        tales: Sequence[Sequence[tuple[str, str]]],
        tokenizer: Any,
        data: StorytellerData,
        seed: int = 0,
    ) -> None:
        self.rows, self.tales, self.tokenizer, self.data, self.seed = rows, tales, tokenizer, data, seed
        counts: dict[str, int] = {}
        for row in rows:
            for word in content_words(row.captions or row.seen):
                counts[base_form(word)] = counts.get(base_form(word), 0) + 1
        self.picturable = {word: count for word, count in counts.items() if count >= 3}
        self.examples: list[dict[str, list[int]]] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the examples of an epoch."""
        rng = random.Random(f"{self.seed}/{epoch}")
        pairs = [story_example(row, self.data, rng) for row in self.rows for _ in range(_times(self._share(row), rng))]
        for source, texts in zip(self.data.tales, self.tales, strict=True):
            pairs += [
                tale_example(text, title, source.kind, self.picturable, rng)
                for text, title in texts
                for _ in range(_times(source.share, rng))
            ]
        self.examples = encode(pairs, self.tokenizer, self.data.max_tokens)

    def _share(self, row: StoryRow) -> float:
        return self.data.shares.get(row.manner, 0.0)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(one["prompt"]) + len(one["answer"]) for one in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.examples[index]


def _times(share: float, rng: random.Random) -> int:
    """So often: the whole part for certain, the rest by chance."""
    return int(share) + (rng.random() < share % 1)


def encode(pairs: Iterable[tuple[StoryPrompt, str]], tokenizer: Any, most: int) -> list[dict[str, list[int]]]:
    """Ids of prompts and answers; answers end with the end of the text."""
    pairs = list(pairs)
    prompts = tokenizer([prompt.text() for prompt, _ in pairs], add_special_tokens=False)["input_ids"] if pairs else []
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"] if pairs else []
    end = tokenizer.eos_token_id
    made = [{"prompt": p, "answer": [*a, end]} for p, a in zip(prompts, answers, strict=True)]
    return [one for one in made if len(one["prompt"]) + len(one["answer"]) <= most]


def read_tales(source: Tales) -> list[tuple[str, str]]:
    """`(text, title)` of the rows that are wanted, in one line each."""
    found = []
    for row in load_rows(TextSource(source.dataset)):
        if any(row.get(column) not in allowed for column, allowed in source.where.items()):
            continue
        text = " ".join(str(row["text"]).split("\nMoral:")[0].split())
        if 20 <= len(text.split()) <= source.max_words and not text.isupper():
            found.append((text, (row.get("title") or "").strip()))
    return found


class StoryBatches(LengthBatches):
    """Batches of similar length whose data set is drawn anew every epoch."""

    def __init__(self, examples: StoryExamples, max_tokens: int, seed: int, shares: int = 1) -> None:
        super().__init__(examples.lengths, max_tokens, seed, shares=shares)
        self.examples, self._drawn = examples, 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if epoch != self._drawn:
            self.examples.set_epoch(epoch)
            self.lengths, self._drawn = self.examples.lengths, epoch


def collate(batch: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` [B, T]; only answers are learned."""
    longest = max(len(one["prompt"]) + len(one["answer"]) for one in batch)
    ids = torch.full((len(batch), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, one in enumerate(batch):
        start, end = len(one["prompt"]), len(one["prompt"]) + len(one["answer"])
        ids[row, :end] = torch.tensor([*one["prompt"], *one["answer"]])
        labels[row, start:end], mask[row, :end] = ids[row, start:end], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
