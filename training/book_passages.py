"""Which passages of novels are worth quoting: whole paragraphs that can stand alone, and a choice among them that has
something for every photo, in every genre, from every book.

The choice is greedy. A passage is worth the sum of weight / (1 + n) over the wanted words it has, n being how many
passages of its genre with that word were chosen before, in proportion to its length: so "dog" is there many times over,
"skateboard" as often as novels have one, and no word fills the shelf. Weights fall with a word's rank among captions.
Passages in which nobody speaks are worth several times as much: photos do not talk, and stories follow the manner of
such pages (`modeling.style_pages`).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from modeling.bookshelf import Book
from modeling.errors import DataError
from modeling.story_types import Source
from modeling.text import content_words, directed_quotes, is_content_word
from modeling.tokenization import knows_whole_words
from modeling.word_forms import base_form

PASSAGE_WORDS = (40, 90)
BOOK_SHARE = 1.5  # of an even share of its genre, at most, from one book
_WHOLE = re.compile(r"^“?[A-Z].*[.!?]”?$")
_NO_PROSE = re.compile(
    r"[\[\]{}*#|\\/<>=~^§]|\d{2,}|\b[A-Z]{3,}\b|(?<!\w)'(?!s\b|tis\b|twas\b)\w|\b\w+in'|\.\s*\.\s*\."
)
_SENTENCE_END = re.compile(r"[.!?]”?(?=\s+“?[A-Z]|$)")
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Messrs|Prof|Capt|Col|Gen|Lieut|Rev|Hon|No)\.")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")
# words that point back at what a reader of one passage has not read
_POINTING_STARTS = frozenset(
    "and but or nor so yet for then thus hence therefore however moreover besides nevertheless also otherwise "
    "accordingly consequently furthermore likewise meanwhile this that these those such it its which who whom whose "
    "another neither either both he she they him her his their them".split()
)
_POINTING = re.compile(
    r"\b(chapter|aforesaid|above-mentioned|said before|as I have (said|told)|the former|the latter|reader)\b", re.I
)
# nobody should meet these as a story about a photo of theirs
_HURTFUL = re.compile(
    r"\b(nigg\w*|negro\w*|darky|darkies|coon|coons|chink\w*|jap|japs|savages?|half-?breeds?|squaws?|mulatto\w*|"
    r"heathens?|jew|jews|jewish|jewess|gyps(y|ies)|cripples?|idiots?|suicid\w*|rap(e|ed|ing)|whipp\w*|flogg\w*|slaves?|"
    r"slavery|corpses?|murder\w*|hang(ed|ing) himself|disembowel\w*|massacr\w*)\b",
    re.I,
)
MOST_NAMES, MOST_SPEECH = 3, 0.5
SENTENCES = (2, 6)
TELLING = (3, 4.0)  # sentences that a page needs to tell something, and how many times as much it is worth then


@dataclass(frozen=True)
class BookPassage:
    """A paragraph of a book: its text on one line, and the index of the book."""

    text: str
    book: int


def books_of(rows: Iterable[Mapping[str, Any]]) -> list[Book]:
    """What rows of a data set say of their books; the first line names a book that has no title."""
    books = []
    for row in rows:
        title = row.get("title") or next((line.strip()[:80] for line in _lines(row) if line.strip()), "untitled")
        year = row.get("year")
        source = Source(str(title), str(row.get("author") or ""), int(year) if year else None)
        books.append(Book(source, str(row.get("genre") or "")))
    return books


def quotable_passages(rows: Iterable[Mapping[str, Any]], words: tuple[int, int] = PASSAGE_WORDS) -> list[BookPassage]:
    """All paragraphs of books that can stand alone, each text once.

    Args:
        rows: With `text`, a paragraph a line.
        words: Least and most words of a passage.
    """
    found: dict[str, int] = {}
    for number, row in enumerate(tqdm(rows, desc="reading", unit="book")):
        for line in _lines(row):
            if words[0] <= line.count(" ") + 1 <= words[1] + 10:  # a quick look first
                text = tidy(line)
                if words[0] <= len(text.split()) <= words[1] and is_quotable(text):
                    found.setdefault(text, number)
    return [BookPassage(text, book) for text, book in found.items()]


def _lines(row: Mapping[str, Any]) -> Sequence[str]:
    text = row.get("text") or ""
    return text.split("\n") if isinstance(text, str) else text


def tidy(paragraph: str) -> str:
    """A paragraph as a reader sees it: quotation marks with sides, dashes, no marks of emphasis."""
    text = directed_quotes(re.sub(r"\s+", " ", paragraph.replace("_", "")).strip())
    return re.sub(r"\s*--+\s*", "—", text)


def is_quotable(text: str) -> bool:
    """Whether a tidy paragraph is whole sentences, mostly told rather than spoken, that can stand alone."""
    if not _WHOLE.match(text) or _NO_PROSE.search(text) or _POINTING.search(text) or _HURTFUL.search(text):
        return False
    if text.lstrip("“").split(maxsplit=1)[0].strip(",;").lower() in _POINTING_STARTS:
        return False
    if not SENTENCES[0] <= count_sentences(text) <= SENTENCES[1] or len(set(_NAME.findall(text))) > MOST_NAMES:
        return False
    if text.count("“") != text.count("”"):
        return False
    return sum(map(len, re.findall(r"“[^”]*”", text))) <= MOST_SPEECH * len(text)


def count_sentences(text: str) -> int:
    """About how many sentences a tidy paragraph has; quick, for there are many."""
    return len(_SENTENCE_END.findall(_TITLE.sub(r"\1", text)))


def wanted_words(tokenizer: Any) -> dict[str, float]:
    """Base forms of the content words that a captioner can say, each with a weight that falls with its rank.

    Raises:
        DataError: its vocabulary is of pieces of words, or has no content words.
    """
    if not knows_whole_words(tokenizer):
        raise DataError("The captioner's vocabulary is of pieces of words: name a captioner that has whole words.")
    words = [word for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer))) if is_content_word(word)]
    if not words:
        raise DataError("The captioner's vocabulary has no content words: name another captioner.")
    weights: dict[str, float] = {}
    for rank, word in enumerate(words, 1):
        weights.setdefault(base_form(word), rank**-0.5)
    return weights


def choose_passages(
    passages: Sequence[BookPassage], books: Sequence[Book], wanted: Mapping[str, float], count: int
) -> list[BookPassage]:
    """`count` passages for all of `wanted`, as many of each genre and about as many of each book, in reading order.

    A genre that has too few leaves its places to the others.
    """
    genres = sorted({books[p.book].genre for p in passages})
    pools = {genre: [p for p in passages if books[p.book].genre == genre] for genre in genres}
    chosen: list[BookPassage] = []
    for left, genre in enumerate(sorted(genres, key=lambda g: len(pools[g])), -len(genres)):
        chosen += _greedy(pools[genre], wanted, (count - len(chosen)) // -left)
    place = {passage.text: i for i, passage in enumerate(passages)}
    return sorted(chosen, key=lambda passage: place[passage.text])


def _greedy(pool: Sequence[BookPassage], wanted: Mapping[str, float], count: int) -> list[BookPassage]:
    """The best `count` of one genre. A worth only falls as others are chosen, so only the top is looked at again."""
    forms = [{base_form(w) for w in content_words([p.text])} & wanted.keys() for p in pool]
    quota = max(1, round(BOOK_SHARE * count / max(len({p.book for p in pool}), 1)))
    tells = [TELLING[1] if "“" not in p.text and count_sentences(p.text) >= TELLING[0] else 1.0 for p in pool]
    had: Counter[str] = Counter()
    of_book: Counter[int] = Counter()

    def worth(i: int) -> float:
        return tells[i] * sum(wanted[form] / (1 + had[form]) for form in forms[i]) / len(pool[i].text)

    queue = [(-worth(i), i) for i in range(len(pool))]
    heapq.heapify(queue)
    chosen, spare = [], []
    while queue and len(chosen) < count:
        _, i = heapq.heappop(queue)
        if of_book[pool[i].book] >= quota:
            spare.append(i)
            continue
        now = worth(i)
        if queue and now < -queue[0][0]:
            heapq.heappush(queue, (-now, i))
            continue
        chosen.append(i)
        had.update(forms[i])
        of_book[pool[i].book] += 1
    chosen += sorted(spare, key=worth, reverse=True)[: count - len(chosen)]
    return [pool[i] for i in chosen]
