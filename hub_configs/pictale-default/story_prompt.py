"""What a language model is asked for: the style in words, what the photo shows, the story so far.

A chat model is shown how it is done before it is asked: a real passage of a book in the style, from the bookshelf, as
if it had been the answer to the same request. Small models keep to the picture and leave out titles and greetings far
more often so than when they are told to in words. A story that goes on is the beginning of the model's own answer,
where it may be put there (`opening`), and an earlier answer in the conversation where not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .text import content_words, split_sentences
from .writer import PassageTask

NEW_WORDS = 2  # of content that another caption must bring: beams often differ in one
MOST_EXAMPLE_WORDS = 70
FAINT, THICK = 0.75, 1.4  # strengths below and above which a style is a hint, or laid on

# What each of the shipped styles is called, and what makes it, in the words of a reader.
GENRES = {
    "everyday": ("a plain story of everyday life", "ordinary people, small events, feelings said simply"),
    "romance": ("a romance novel", "longing, tenderness, what two people feel and do not say"),
    "adventure": ("an adventure novel", "journeys, danger, quick decisions, strange places"),
    "science_fiction": ("a science fiction novel", "machines, other worlds, discoveries told soberly"),
    "mystery": ("a mystery novel", "a careful observer, small clues, a question left open"),
    "horror": ("a horror novel", "dread that grows, darkness, something that is never quite seen"),
    "fairy_tale": ("a fairy tale", "kings, animals and children, wonders told as if they were nothing"),
}
# A page for the style that has no books on the shelf.
EVERYDAY = (
    "a woman, a bakery, rain",
    "Ruth missed the bus because of the rain. She stood under the roof of the bakery and counted her coins. There "
    "were enough for a roll, so she bought one, and it was still warm. When the next bus came, she had almost "
    "forgotten that she was late.",
)


@dataclass(frozen=True)
class StoryPrompt:
    """One request, for models that converse and for those that only go on with a text.

    Args:
        manner: How to write, for all answers.
        kind: Of the book, as in "a page of a mystery novel".
        shows: What the story's picture shows.
        before: The story so far, its newest part if it is long.
        scene: What a new photo shows, to which the story now comes; "" if there is none.
        example: What another page is about, and that page; None without a bookshelf.
    """

    manner: str
    kind: str
    shows: str
    before: str = ""
    scene: str = ""
    example: tuple[str, str] | None = None

    def messages(self, opening: bool) -> list[dict[str, str]]:
        """The conversation up to the model's turn.

        Args:
            opening: The caller puts `before` at the beginning of the model's answer. If not, or if there is a new
                scene to announce, it is an earlier answer of the model's.
        """
        turns = [("system", self.manner)]
        if self.example:
            turns += [("user", self._request(self.example[0])), ("assistant", self.example[1])]
        turns.append(("user", self._request(self.shows)))
        if self.before and not (opening and not self.scene):
            shows = f" Now it shows: {self.scene}" if self.scene else ""
            turns += [("assistant", self.before), ("user", f"Go on with the story from there.{shows}")]
        return [{"role": role, "content": content} for role, content in turns]

    def opening(self) -> str:
        """What the model's answer begins with."""
        return "" if self.scene else self.before

    def plain(self) -> str:
        """A text that such a page is the natural end of, for models that know no conversation."""
        shown = [f"Shows: {self.example[0]}\nPage: {self.example[1]}"] if self.example else []
        told = f" {self.before}" if self.before else ""
        scene = f"\n\nShows: {self.scene}\nPage:" if self.before and self.scene else ""
        shown.append(f"Shows: {self.shows}\nPage:{told}{scene}")
        return "\n\n".join([f"Pages of {self.kind}, and what each of them shows.", *shown])

    def _request(self, shows: str) -> str:
        return f"Write a page of {self.kind}." + (f" It shows: {shows}" if shows else "")


def story_prompt(task: PassageTask, before: str, example: tuple[str, str] | None = None) -> StoryPrompt:
    """The request for a passage; `before` is as much of the story so far as the model has room for."""
    kind, traits = style_in_prompt(task.label, task.options.strength)
    shows = " ".join(_different(task.captions))
    manner = (
        "You are a storyteller. You answer with the story only: plain prose that keeps to what the picture shows, "
        f"without title, comment or formatting.{traits}"
    )
    new = task.new_photo and bool(before)
    example = example or (EVERYDAY if kind == GENRES["everyday"][0] else None)
    return StoryPrompt(manner, kind, "" if new else shows, before, shows if new else "", example)


def _different(captions: Sequence[str]) -> list[str]:
    """The captions that say something else than those before them."""
    kept, said = [], set()
    for caption in captions:
        words = set(content_words([caption]))
        if not kept or len(words - said) >= NEW_WORDS:
            kept.append(caption)
            said |= words
    return kept


def style_in_prompt(label: str, strength: float) -> tuple[str, str]:
    """What kind of book a style or blend `a:0.7,b:0.3` is, and a sentence on its manner that may be empty."""
    shares: dict[str, float] = {}
    for part in label.split(","):
        name, _, share = part.partition(":")
        if name := " ".join(name.split()):
            shares[name] = float(share or 1)
    names = sorted(shares, key=lambda name: -shares[name])
    if not names or strength <= 0:
        return "a story", ""
    kinds, traits = zip(*(GENRES.get(name, (f"a book called “{name}”", "")) for name in names), strict=True)
    kind = kinds[0] + "".join(f" that has something of {other}" for other in kinds[1:])
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


def example_page(words: Sequence[str], passage: str) -> tuple[str, str] | None:
    """A passage of a book as an example: the words that it is about, and its first sentences."""
    kept: list[str] = []
    for sentence in split_sentences(passage):
        if kept and sum(len(s.split()) for s in kept) + len(sentence.split()) > MOST_EXAMPLE_WORDS:
            break
        kept.append(sentence)
    page = " ".join(kept)
    return (", ".join(words), page) if page and len(page.split()) <= 2 * MOST_EXAMPLE_WORDS else None
