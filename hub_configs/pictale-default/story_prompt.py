"""The one request for a passage: style, a page to imitate, what the photo shows, the story so far.

The storyteller is trained on exactly the text of `StoryPrompt.text`, and is given it at run time; other language models
are asked for the same in their own form, a conversation (`messages`) or a text to go on with (`text` with an example).

    Write a mystery, medium.
    Page: He let a hen pheasant pass over his head, and brought down a cock.
    Photo: A pair of yellow shoes. A suitcase with red lining.
    Perhaps: Two suitcases stand in a hall.
    Objects: suitcase, shoe
    Title:

is gone on with by ` The Yellow Shoes\\nStory: A pair of ...`. A story that goes on ends, in place of the title, with

    Story: A pair of yellow shoes stood next to a suitcase.
    New photo: A man waits at a bus stop.
    Next:

`Page`, `Perhaps`, `Objects` and `New photo` are left out where there is nothing to say. A sentence of the reader's is
the end of the story so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from .story_types import LENGTHS
from .text import content_words, split_sentences
from .writer import PassageTask

NEW_WORDS = 2  # of content that another caption must bring: beams often differ in one
MOST_PAGE_WORDS = 80
MOST_CAPTION_WORDS = 60  # of one caption: a person may write a letter
MOST_CAPTIONS = 5
FAINT, THICK = 0.75, 1.4  # strengths below and above which a style is a hint, or laid on
_STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "--", "…": "..."})
NO_STYLE = "a story"
PAGE_STYLE = "a story in the manner of this page"
SONG = "a song"

# What each of the shipped styles is called, and what makes it, in the words of a reader.
GENRES = {
    "everyday": ("a plain story of everyday life", "ordinary people, small events, feelings said simply"),
    "romance": ("a romance", "longing, tenderness, what two people feel and do not say"),
    "adventure": ("an adventure", "journeys, danger, quick decisions, strange places"),
    "science_fiction": ("an old science fiction story", "machines, other worlds, discoveries told soberly"),
    "mystery": ("a mystery", "a careful observer, small clues, a question left open"),
    "horror": ("a horror story", "dread that grows, darkness, something that is never quite seen"),
    "fairy_tale": ("a fairy tale", "kings, animals and children, wonders told as if they were nothing"),
}


@dataclass(frozen=True)
class StoryPrompt:
    """One request.

    Args:
        kind: What is to be written, as in "a mystery"; see `kind_of`.
        shows: Sentences about the story's photo, surest first.
        length: A key of `LENGTHS`.
        page: Of a book whose manner is to be taken; "" for none.
        perhaps: Sentences that the photo brings to mind, which may be wrong.
        objects: Names of things in it.
        before: The story so far, its newest part if it is long; a reader's sentence is its end.
        scene: Sentences about a new photo, to which the story comes now.
        traits: What makes the style, for models that were not trained on it.
    """

    kind: str
    shows: tuple[str, ...]
    length: str = "medium"
    page: str = ""
    perhaps: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    before: str = ""
    scene: tuple[str, ...] = ()
    traits: str = ""

    def text(self) -> str:
        """What the storyteller reads: ends where it goes on."""
        lines = [f"Write {self.kind}, {self.length}."]
        for name, value in (
            ("Page", one_line(self.page)),
            ("Photo", as_sentences(self.shows)),
            ("Perhaps", as_sentences(self.perhaps)),
            ("Objects", ", ".join(self.objects)),
        ):
            if value:
                lines.append(f"{name}: {value}")
        if not self.before:
            return "\n".join([*lines, "Title:"])
        lines.append(f"Story: {one_line(self.before)}")
        if self.scene:
            lines.append(f"New photo: {as_sentences(self.scene)}")
        return "\n".join([*lines, "Next:"])

    def messages(self, opening: bool) -> list[dict[str, str]]:
        """The same as a conversation, up to the turn of a model that converses.

        Args:
            opening: The caller puts `before` at the beginning of the model's answer. If not, or if there is a new
                photo to announce, it is an earlier answer of the model's.
        """
        turns = [
            (
                "system",
                "You are a storyteller. You answer with the story only: plain prose that keeps to what the photo "
                f"shows, without title, comment or formatting.{self.traits}",
            ),
            ("user", self._request()),
        ]
        if self.before and not (opening and not self.scene):
            shows = f" Now the photo shows: {as_sentences(self.scene)}" if self.scene else ""
            turns += [("assistant", self.before), ("user", f"Go on with the story from there.{shows}")]
        return [{"role": role, "content": content} for role, content in turns]

    def opening(self) -> str:
        """What the answer of a model that converses begins with."""
        return "" if self.scene else self.before

    def plain(self) -> str:
        """The same for models that know no conversation: as the storyteller's, with the story begun."""
        told = dataclasses.replace(self, before="", scene=()).text().removesuffix("Title:")
        if self.before and self.scene:
            return f"{told}Story: {self.before}\n\nNew photo: {as_sentences(self.scene)}\nStory:"
        return f"{told}Story:" + (f" {self.before}" if self.before else "")

    def _request(self) -> str:
        low, high = LENGTHS[self.length]
        asked = f"Write a passage of {self.kind}, {low} to {high} words."
        if self.page:
            asked += f"\n\nTake the manner, not the content, of this page:\n{one_line(self.page)}"
        if self.shows:
            asked += f"\n\nThe photo shows: {as_sentences(self.shows)}"
        if self.perhaps:
            asked += f" It may also show: {as_sentences(self.perhaps)}"
        if self.objects:
            asked += f" Things in it: {', '.join(self.objects)}."
        return asked


def story_prompt(task: PassageTask, before: str, page: str = "") -> StoryPrompt:
    """The request for a passage; `before` is as much of the story so far as the model has room for."""
    options = task.options
    kind, traits = kind_of(task.label, options.strength, options.lyrics, bool(page))
    shows, new = tuple(different(task.captions)[:MOST_CAPTIONS]), task.new_photo and bool(before)
    return StoryPrompt(
        kind,
        () if new else shows,
        options.length,
        page,
        () if before else tuple(task.perhaps),
        before=before,
        scene=shows if new else (),
        traits=traits,
    )


def as_sentences(captions: Sequence[str]) -> str:
    """Captions as sentences of one line: `a dog runs` -> `A dog runs.`"""
    said = []
    for caption in captions:
        text = one_line(caption).rstrip(" .,;:")
        if text:
            said.append(text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?", "”", '"')) else "."))
    return " ".join(said)


def one_line(text: str) -> str:
    """In one line and with straight quotation marks, as the storyteller knows texts."""
    return " ".join(text.translate(_STRAIGHT).split())


def different(captions: Sequence[str]) -> list[str]:
    """The captions that say something else than those before them."""
    kept, said = [], set()
    for caption in (newest(text, MOST_CAPTION_WORDS) for text in captions):
        words = set(content_words([caption]))
        if not kept or len(words - said) >= NEW_WORDS:
            kept.append(caption)
            said |= words
    return kept


def kind_of(label: str, strength: float = 1.0, lyrics: bool = False, page: bool = False) -> tuple[str, str]:
    """What kind of text a style or blend `a:0.7,b:0.3` is, and a sentence on its manner that may be empty.

    Args:
        strength: 0 is no style.
        lyrics: A song.
        page: A page shows the manner: a style of the user's own is then named by it, not by its file's name.
    """
    shares: dict[str, float] = {}
    for part in label.split(","):
        name, _, share = part.partition(":")
        if name := " ".join(name.split()):
            shares[name] = float(share or 1)
    names = sorted(shares, key=lambda name: -shares[name])
    if not names or strength <= 0:
        return (SONG if lyrics else NO_STYLE), ""
    own = PAGE_STYLE if page else "a book called “{}”"
    kinds, traits = zip(*(GENRES.get(name, (own.format(name), "")) for name in names), strict=True)
    kind = kinds[0] + "".join(f" that has something of {other}" for other in kinds[1:])
    if lyrics:
        kind = f"{SONG} like {kind}"
    said = "; ".join(filter(None, traits))
    if strength < FAINT:
        return kind, f" Only a hint of its manner: {said}." if said else " Only hint at its manner."
    thick = " Lay it on thickly." if strength > THICK else ""
    return kind, (f" Its manner: {said}." if said else "") + thick


def newest(text: str, most_words: int) -> str:
    """The end of a text that has no more than so many words, whole sentences if one fits."""
    words = text.split()
    if len(words) <= most_words:
        return text
    kept: list[str] = []
    for sentence in reversed(split_sentences(text)):
        if sum(len(s.split()) for s in kept) + len(sentence.split()) > most_words:
            break
        kept.insert(0, sentence)
    return " ".join(kept or words[len(words) - most_words :])


def shortened_page(passage: str) -> str:
    """The first sentences of a passage, about `MOST_PAGE_WORDS` words; "" if its first sentence is far longer."""
    kept: list[str] = []
    for sentence in split_sentences(passage):
        if kept and sum(len(s.split()) for s in kept) + len(sentence.split()) > MOST_PAGE_WORDS:
            break
        kept.append(sentence)
    page = one_line(" ".join(kept))
    return page if len(page.split()) <= 2 * MOST_PAGE_WORDS else ""
