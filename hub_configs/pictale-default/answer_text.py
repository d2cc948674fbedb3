"""Prose out of what a language model answers, while it is still answering.

Models greet ("Sure, here is a story:"), give titles, think aloud, underline with asterisks, repeat the sentence they
were to go on from, and end with remarks. None of it belongs in a passage. What `Answer.text` has shown it never takes
back: a word is shown when it is whole and can no longer turn out to be part of any of these.
"""

from __future__ import annotations

import re

from .text import split_sentences

LONGEST_SENTENCE = 40  # words
HEADING_WORDS = 10  # of a title, at most
LINE_START_WORDS = 4  # of a later line are seen before it is shown: by then a remark has given itself away
GREETING_WORDS = 40
ECHO_SENTENCES = 3  # at the story's end are what a model repeats
STOPS = (".", "!", "?", "…")

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_WORK = r"(?:story|stories|passage|page|scene|continuation|next part|paragraph|tale|beginning|excerpt)"
_GREETS = r"(?:sure|certainly|of course|absolutely|okay|ok|great|gladly|with pleasure|i'd be happy|i’d be happy)\b"
_GREETING = re.compile(
    rf"(?:{_GREETS}[^\n:]{{0,80}}?[!.,:—-]\s*)?(?:here(?:'s|’s| is| are)|this is|below is)\b"
    rf"[^\n:]{{0,120}}?\b{_WORK}\b[^\n:]{{0,120}}:\s*"
    rf"|{_GREETS}[^\n]{{0,120}}\b{_WORK}\b[^\n]{{0,60}}[:.!]\s*$"
    rf"|{_GREETS}[!.]\s*$",
    re.IGNORECASE,
)
_MAY_GREET = re.compile(rf"{_GREETS}|here(?:'s|’s| is| are)|this is|below is", re.IGNORECASE)
_NAMED = re.compile(r"(?:story|page|passage|continuation|answer)\s*:\s*", re.IGNORECASE)
_TITLE = re.compile(r"(?:title\s*:|chapter\s+\w+|#+\s|\*\*.{1,80}\*\*\s*$|__.{1,80}__\s*$)", re.IGNORECASE)
_REMARK = re.compile(
    r"[\[(*_]*(?:to be continued|\(?word count|note\s*:|moral\s*:|shows\s*:|page\s*:|title\s*:|story\s*:"
    r"|i hope (?:you|this)|let me know|would you like|do you want me|feel free|this (?:story|passage) (?:is|has|was)"
    r"|user\s*:|assistant\s*:|human\s*:|###)",
    re.IGNORECASE,
)
_THE_END = re.compile(r"[\[(*_]*the end[.!]?[\])*_]*\s*$", re.IGNORECASE)
_RULE = re.compile(r"[\s*_=#~-]*$|```.*$")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|>\s?|[-*•]\s+)|\*+|`+|(?<!\w)_+|_+(?!\w)")
_OPENING = re.compile(r'(^|[\s(\[—-])"(?=\S)')
_ABBREVIATION = re.compile(r"(?:^|[\s(“])(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Col|Gen|No|vs|[A-Z])\.$")


class Answer:
    """What a model has said so far, and the passage in it.

    Args:
        before: The story that it goes on from.
        least, most: Words of the passage. A sentence that has begun is finished, so it may become longer, by no more
            than a sentence; it ends at the sentence after which another one would probably be too much.
        longest_sentence: In words.
    """

    def __init__(self, before: str, least: int, most: int, longest_sentence: int = LONGEST_SENTENCE) -> None:
        self.least, self.most, self.longest_sentence = least, most, longest_sentence
        self._echo = split_sentences(before)[-ECHO_SENTENCES:]
        self._begins = not before or _ends(before)
        self._raw, self._over = "", False
        self.text = ""

    def add(self, piece: str) -> str:
        """The passage after another piece of the answer: begins with what it was before."""
        self._raw += piece
        if any(mark.isspace() for mark in piece):  # else no word has become whole
            self.text = self._passage(whole=False)
        return self.text

    @property
    def enough(self) -> bool:
        """Whether the model should be stopped."""
        words = len(self.text.split())
        if self._over or words >= self.most + self.longest_sentence:
            return True
        if words < self.least or not self.at_sentence_end:
            return False
        sentences = max(len(split_sentences(self.text)), 1)
        return words + words / sentences > self.most

    @property
    def at_sentence_end(self) -> bool:
        """Whether the passage could end here; a question in the middle of a speech is no end."""
        ended = _ends(self.text) and not _ABBREVIATION.search(self.text)
        return ended and self.text.count("“") <= self.text.count("”")

    def end(self, said_all: bool) -> str:
        """The passage when no more comes, ended as a text should be.

        Args:
            said_all: The model came to an end by itself; if not, its last word may be half a word.
        """
        if said_all:
            self.text = self._passage(whole=True)
        if self.text and not _ends(self.text):
            self.text = self.text.rstrip(" ,;:—-") + ("." if said_all else "…")
        if self.text.count("“") > self.text.count("”"):
            self.text += "”"
        return self.text

    def _passage(self, whole: bool) -> str:
        lines = _THOUGHTS.sub("", self._raw).lstrip().split("\n")
        paragraphs: list[str] = []
        for i, line in enumerate(lines):
            complete = whole or i < len(lines) - 1
            if paragraphs and (_REMARK.match(line.strip()) or (complete and _THE_END.match(line.strip()))):
                self._over = True
                break
            line = self._first_line(line, complete, alone=whole and i == len(lines) - 1) if not paragraphs else line
            if line is None or (paragraphs and not complete and len(line.split()) < LINE_START_WORDS):
                break
            if not _RULE.match(line):
                paragraphs.append(_MARKUP.sub("", line if complete else _whole_words(line)).strip())
        text = _directed("\n\n".join(" ".join(p.split()) for p in paragraphs if p))
        text = self._without_echo(text, whole)
        return text[:1].upper() + text[1:] if self._begins else text

    def _first_line(self, line: str, complete: bool, alone: bool) -> str | None:
        """What belongs to the passage of a line before which nothing did; None while that cannot be said."""
        line = line.lstrip()
        count = len(line.split())
        greeting = _GREETING.match(line)
        if greeting and (complete or len(line) > greeting.end()):
            line = line[greeting.end() :]
        elif not complete and count < GREETING_WORDS and _MAY_GREET.match(line):
            return None
        if _TITLE.match(line) and not (alone and not line.startswith("#")):
            return "" if complete else None
        if _like_a_title(line) and not alone:
            return "" if complete else None
        return line[named.end() :] if (named := _NAMED.match(line)) else line

    def _without_echo(self, text: str, whole: bool) -> str:
        """Without the sentences at its beginning with which the story before it ends."""
        for sentence in self._echo:
            if text.startswith(sentence):
                text = text[len(sentence) :].lstrip()
            elif text and not whole and sentence.startswith(text):
                return ""
        return text


def _ends(text: str) -> bool:
    return text.rstrip("”’\"')").endswith(STOPS)


def _like_a_title(line: str) -> bool:
    """Few words, no marks, and hardly one that matters in small letters."""
    words = line.split()
    marked = any(mark in line for mark in (*STOPS, *'”",;:'))
    small = sum(len(word) > 3 and word.islower() for word in words)
    return not marked and len(words) <= HEADING_WORDS and (small < 2 or len(words) < 3)


def _whole_words(line: str) -> str:
    """A line that may go on, without its last word if that may."""
    return line if line[-1:].isspace() else line[: len(line.rstrip()) - len((line.split() or [""])[-1])]


def _directed(text: str) -> str:
    """Straight double quotes become “ and ”; which, is told from what stands before them."""
    return _OPENING.sub(r"\1“", text).replace('"', "”")
