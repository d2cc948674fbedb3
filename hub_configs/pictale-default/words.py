"""What a word is here: the same for the tokenizers, for counting, and for telling what a text is about.

A module of its own without other libraries, so that what only counts words need not wait for transformers.
"""

from __future__ import annotations

import re
import unicodedata

# n't words whole | clitics | dashes and dots | words and numbers | any other mark alone
WORD_PATTERN = r"[^\W\d_]+n't\b|'(?:s|ll|re|ve|d|m)\b|--+|\.\.\.|[^\W_]+|[^\w\s]"
_WORD = re.compile(WORD_PATTERN)


def split_words(text: str, lowercase: bool = False) -> list[str]:
    """The tokens of `text` before any vocabulary is applied: what the tokenizer does, without its call overhead."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    return _WORD.findall(text.lower() if lowercase else text)
