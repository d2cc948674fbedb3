"""Text in and out: sentences, quotation marks, content words, and the cleaning of what a decoder wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import nupunkt

from .stop_words import STOP_WORDS
from .word_forms import base_form
from .words import split_words

_OPENING = re.compile(r'(^|[\s(\[—-])"(?=\S)')
_SINGLE_OPENING = re.compile(r"(^|[\s(\[—“-])'(?=[A-Z])")
_SINGLE_CLOSING = re.compile(r"(?<=[,.!?;])'(?!\w)")
_SPACE = re.compile(r"\s+")
_SENTENCE_START = re.compile(r"(^|[.!?…][”’)]*\s+|\n\s*)([“‘(]*)([a-zà-ÿ]\w*)")
# after “Stop!” these words go on with the sentence that holds the speech
_SPEECH_GOES_ON = frozenset(
    "he she they we said asked cried replied answered exclaimed whispered shouted repeated continued returned".split()
)


def split_sentences(paragraph: str) -> list[str]:
    """Sentences of one paragraph (nupunkt, an implementation of Punkt)."""
    paragraph = _SPACE.sub(" ", paragraph).strip()
    return [s.strip() for s in nupunkt.sent_tokenize(paragraph) if s.strip()] if paragraph else []


def directed_quotes(paragraph: str) -> str:
    """Straight double quotes, and single ones used for speech, become “ and ”, so that each is a token with a side."""
    paragraph = paragraph.replace("''", '"').replace("``", '"')
    paragraph = _OPENING.sub(r"\1“", paragraph).replace('"', "”")
    if _SINGLE_OPENING.search(paragraph) and _SINGLE_CLOSING.search(paragraph):
        paragraph = _SINGLE_CLOSING.sub("”", _SINGLE_OPENING.sub(r"\1“", paragraph))
    return paragraph


def is_content_word(word: str) -> bool:
    """Whether a word says something of its own: letters only, at least three, and not a stop word."""
    return len(word) > 2 and word.isalpha() and word.lower() not in STOP_WORDS


def content_words(texts: Iterable[str], limit: int | None = None) -> list[str]:
    """Words that carry the meaning of `texts`, lower-case, most repeated first, at most `limit`.

    Of several forms of one word ("dog", "dogs") only the most frequent stands for all. Stop words, numbers and words of
    one or two letters are left out.
    """
    counts: dict[str, Counter[str]] = {}  # of the forms of each word
    for text in texts:
        for word in split_words(text, lowercase=True):
            if is_content_word(word):
                counts.setdefault(base_form(word), Counter())[word] += 1
    ranked = sorted(counts.values(), key=lambda forms: -forms.total())  # stable: first seen first among equals
    words = [forms.most_common(1)[0][0] for forms in ranked]
    return words if limit is None else words[:limit]


def clean_text(text: str) -> str:
    """Make decoded tokens readable: spacing, quotation marks, doubled words, capitals, the final period.

    A quotation left open is closed; a closing mark that nothing opened is dropped.
    """
    text = _SPACE.sub(" ", text.replace("<unk>", " ")).strip()
    text = re.sub(r"\s*(?:--+|—)\s*", "—", text)
    text = re.sub(r"\s+([,.;:!?)\]”…]|\.\.\.|'(?:s|ll|re|ve|d|m)\b)", r"\1", text)
    text = re.sub(r"(?<![\w'])(ma|ne|e|o|d|l|th|y)\s'\s(?=\w)", r"\1'", text, flags=re.IGNORECASE)  # ma'am, o'clock
    text = re.sub(r"([(\[“])\s+", r"\1", text)
    text = re.sub(r"(?<=\w)\s*-\s*(?=\w)", "-", text)
    text = re.sub(r"\b(\w+)( \1\b)+", _drop_repeat, text, flags=re.IGNORECASE)
    text = re.sub(r"—\s+(?=\w)", "—", _balance_quotes(text))  # a mark between them is gone
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = _SPACE.sub(" ", re.sub(r"\s'(?=\s|$)", " ", text)).strip()
    text = re.sub(r"^[,.;:!?)\]”—\s-]+", "", text)
    if not text:
        return ""
    text = _SENTENCE_START.sub(_capitalize, text)
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)
    return _final_period(text)


def _capitalize(match: re.Match[str]) -> str:
    before, quotes, word = match.groups()
    if before.rstrip()[-2:] in ("!”", "?”") and not quotes and word in _SPEECH_GOES_ON:
        return match[0]
    return before + quotes + word[0].upper() + word[1:]


def _drop_repeat(match: re.Match[str]) -> str:
    # "had had" and "that that" are English; anything else repeated at once is a stutter of the decoder
    return match[0] if match[1].lower() in ("had", "that", "no", "ha", "very", "well", "come", "now") else match[1]


def _balance_quotes(text: str) -> str:
    out, is_open = [], False
    for mark in text:
        if mark == "“":
            if is_open:
                continue
            is_open = True
        elif mark == "”":
            if not is_open:
                continue
            is_open = False
        out.append(mark)
    return "".join(out).rstrip() + ("”" if is_open else "")


def _final_period(text: str) -> str:
    body, closing = (text[:-1], "”") if text.endswith("”") else (text, "")
    body = body.rstrip(" ,;:—-")
    if body and body[-1] not in ".!?…":
        body += "."
    return body + closing


def lyric_lines(text: str) -> str:
    """A song in lines: at its own ` / ` where it has any, else at commas and sentence ends, as neural-storyteller's
    `lyric` did."""
    split = r"\s*/\s+" if " / " in text else r",\s+|(?<=[.!?])\s+"
    pieces = (piece.strip(" /") if " / " in text else piece.strip(" ,") for piece in re.split(split, text))
    return "\n".join(piece[0].upper() + piece[1:] for piece in pieces if piece)


def growing_words(texts: Iterable[str]) -> Iterator[str]:
    """Texts that grow by sentences, each beginning with the one before, as one text that grows by words."""
    shown = 0
    for text in texts:
        for word in re.finditer(r"\S+", text):
            if word.end() > shown:
                shown = word.end()
                yield text[:shown]
