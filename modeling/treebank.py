"""Penn Treebank words, as the original skip-thoughts read its sentences.

The rules of R. MacIntyre's public tokenizer.sed, in the order in which NLTK 3.0's `word_tokenize` (which the original
called) applies them. Case is kept. Not to be mixed with `tokenization.py`, whose words this project's own models know:
here "don't" is "do n't", a straight quotation mark becomes `` or '', and only the last period is split off.
"""

from __future__ import annotations

import re

_RULES = [
    (r'^"', "``"),  # opening quotation marks
    (r"(``)", r" \1 "),
    (r'([ (\[{<])"', r"\1 `` "),
    (r"([:,])([^\d])", r" \1 \2"),  # a comma or colon, unless inside a number
    (r"([:,])$", r" \1 "),
    (r"\.\.\.", " ... "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"([^.])(\.)([\])}>\"']*)\s*$", r"\1 \2\3 "),  # the last period
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[\]\[(){}<>]", r" \g<0> "),
    (r"--", " -- "),
    (r"^|$", " "),  # every later rule may count on a space at both ends
    (r'"', " '' "),  # closing quotation marks
    (r"(\S)('')", r"\1 \2 "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),  # clitics
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    (r"(?i)\b(can)(not)\b", r" \1 \2 "),
    (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
    (r"(?i)\b(gim)(me)\b", r" \1 \2 "),
    (r"(?i)\b(gon|wan)(na)\b", r" \1 \2 "),
    (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
    (r"(?i)\b(lem)(me)\b", r" \1 \2 "),
    (r"(?i)\b(more)('n)\b", r" \1 \2 "),
    (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]


def treebank_words(sentence: str) -> list[str]:
    """Words and marks of one sentence.

    Example:
        >>> treebank_words('He said, "I can\\'t do it."')
        ['He', 'said', ',', '``', 'I', 'ca', "n't", 'do', 'it', '.', "''"]
    """
    for pattern, replacement in _COMPILED:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()
