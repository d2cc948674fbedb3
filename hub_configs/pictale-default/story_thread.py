"""What holds a story together from one passage to the next: who is in it, and what it was about.

A recurrent decoder that draws each passage anew lets people appear from nowhere and change sex between two sentences.
Nothing here understands a text; it counts what can be counted: names, pronouns, and words that were used before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .text import content_words, directed_quotes, split_sentences
from .word_forms import base_form
from .words import split_words

_PRONOUNS = {
    **dict.fromkeys("he him his himself".split(), "male"),
    **dict.fromkeys("she her hers herself".split(), "female"),
}
_PERSONS = {
    **dict.fromkeys(
        "man men boy boys gentleman gentlemen guy guys lad father dad son brother husband uncle grandfather king "
        "prince sir lord mr".split(),
        "male",
    ),
    **dict.fromkeys(
        "woman women girl girls lady ladies mother mom daughter sister wife aunt grandmother queen princess madam "
        "miss mrs".split(),
        "female",
    ),
}
_PEOPLE = {*_PERSONS, *"person persons people child children kid kids figure figures couple crowd".split()}
_FACES = frozenset("face faces skin".split())
_COLOURS = frozenset("black white yellow red brown".split())
_TURNING = frozenset("white red".split())  # what faces turn with fear or anger
_SMALL_WORDS = frozenset("the a an his her their my your our its this that in on of with by to as who which".split())
_BE = frozenset("is are was were".split())
# what a first sentence does not begin with unless something came before it
_GOING_ON = frozenset("and but or nor so then yet".split())
# words written with a capital that introduce nobody
_NO_NAMES = frozenset(
    "Mr Mrs Miss Dr Sir Madam Lord Lady God Christmas English French German American Monday Tuesday Wednesday Thursday "
    "Friday Saturday Sunday January February March April June July August September October November December".split()
)
_SENTENCE_MARKS = frozenset(".!?…“”")
CARRY_DECAY = 0.5


def _is_common(word: str, vocabulary: Mapping[str, int]) -> bool:
    """Whether a capitalised word is usually written small; ids follow frequency."""
    return vocabulary.get(word.lower(), len(vocabulary)) < vocabulary.get(word, len(vocabulary))


def names_in(text: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Proper names in a text, each once, in order; `vocabulary` (word -> rank) tells a name from a first word."""
    names, first = [], True
    for word in split_words(directed_quotes(text)):
        if word[0].isalpha():
            name = word[0].isupper() and len(word) > 1 and word not in _NO_NAMES
            if name and not (first and _is_common(word, vocabulary)) and word not in names:
                names.append(word)
        first = word in _SENTENCE_MARKS or (first and not word[0].isalpha())
    return names


def last_words(text: str, vocabulary: Mapping[str, int], limit: int) -> list[str]:
    """The last whole sentences of a text, as many as have at most `limit` words and marks in all, as decoders write.

    A first word that is no name loses its capital; inside quotation marks it keeps it, as in training.
    """
    words: list[str] = []
    for sentence in reversed(split_sentences(directed_quotes(text))):
        pieces = split_words(sentence)
        if len(words) + len(pieces) > limit:
            break
        if pieces and pieces[0] != "I" and _is_common(pieces[0], vocabulary):
            pieces[0] = pieces[0].lower()
        words = pieces + words
    return words


@dataclass(frozen=True)
class Cast:
    """Who has appeared so far: proper names, whether there are he and she, and colours that people were said to be."""

    names: frozenset[str] = frozenset()
    genders: frozenset[str] = frozenset()
    colours: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Iterable[str], told: str, vocabulary: Mapping[str, int]) -> Cast:
        """The cast of a story.

        Args:
            given: Captions and the user's own sentences: whoever they speak of is there.
            told: What a model wrote. A "she" of its own brings in nobody where there is only a he: it is a slip, and
                must not make the next one right.
            vocabulary: Words by rank.
        """
        names, genders, colours = set(names_in(told, vocabulary)), set(), set()
        for text in given:
            colours |= set(colours_of_people(text))
            names |= set(names_in(text, vocabulary))
            words = split_words(text, lowercase=True)
            genders |= {gender for word in words if (gender := _PERSONS.get(word) or _PRONOUNS.get(word))}
        for word in split_words(told, lowercase=True):
            gender = _PERSONS.get(word) or (None if genders else _PRONOUNS.get(word))
            genders |= {gender} if gender else set()
        return cls(frozenset(names), frozenset(genders), frozenset(colours))

    def breaks(self, text: str, vocabulary: Mapping[str, int]) -> int:
        """How often a text breaks the thread.

        One for each name that is new, the first of a story aside, one for a pronoun of a sex that nobody in the story
        has: after a man, "she" is one, unless the text speaks of a woman, a mother or a girl before; and one for each
        person who is given a colour: a man in a black jacket is no black man.
        """
        new = set(names_in(text, vocabulary)) - self.names
        count = len(new) if self.names else max(len(new) - 1, 0)
        count += sum(colour not in self.colours for colour in colours_of_people(text))
        known = set(self.genders)
        for word in split_words(text, lowercase=True):
            gender = _PRONOUNS.get(word)
            if gender and known and gender not in known:
                count += 1
            gender = gender or _PERSONS.get(word)
            known |= {gender} if gender else set()
        return count


def begins_in_the_middle(text: str) -> bool:
    """Whether a story that begins so seems to go on from something: "But the man ...", "Then ...", "She had ..."."""
    first = next((word for word in split_words(text, lowercase=True) if word[0].isalpha()), "")
    return first in _GOING_ON or first in _PRONOUNS or first in ("they", "them", "their")


def colours_of_people(text: str) -> list[str]:
    """Colours that a text says people are of: "a black man", "white and old people", "he was brown", "brown faces"."""
    words = [word for word in split_words(text, lowercase=True) if word[0].isalnum() or word == "-"]
    found = []
    for i, word in enumerate(words):
        if word not in _COLOURS or "-" in words[i + 1 : i + 2]:  # "black-haired"
            continue
        people = _PEOPLE if word in _TURNING else _PEOPLE | _FACES
        before, after = words[max(i - 3, 0) : i], words[i + 1 : i + 4]
        after = after[1:] if after[:1] in (["and"], ["or"]) else after[:2]
        is_attribute = after[:1] and (after[0] in people or (after[0] not in _SMALL_WORDS and after[-1] in people))
        said_of = any(w in _BE and k and before[k - 1] in people for k, w in enumerate(before))
        if is_attribute or said_of:
            found.append(word)
    return found


def carried_words(passages: Sequence[str], subjects: Sequence[str], limit: int) -> list[str]:
    """The words of `subjects` that a story has lately been about, at most `limit`.

    A word weighs `CARRY_DECAY` to the power of the distance for each passage that has it (the last: 1, the one before:
    a half), so that what was dropped long ago fades. Words that no passage has are left out.
    """
    weights = dict.fromkeys(subjects, 0.0)
    forms = [{base_form(word) for word in content_words([passage])} for passage in passages]
    for distance, present in enumerate(reversed(forms)):
        for word in weights:
            weights[word] += CARRY_DECAY**distance * (base_form(word) in present)
    ranked = sorted((word for word in weights if weights[word]), key=lambda word: -weights[word])
    return ranked[:limit]


def persons_in(text: str) -> list[str]:
    """The words of a text that mean a man or a woman ("boy", "mother"), each once."""
    return list(dict.fromkeys(word for word in split_words(text, lowercase=True) if word in _PERSONS))
