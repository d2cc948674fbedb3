"""How captions are spelt before their words are looked up, wherever captions are read."""

from __future__ import annotations

import re


def normalise_caption(text: str) -> str:
    """Words, apostrophes and hyphens in lower case; other punctuation carries nothing in a caption and is dropped.

    Example:
        >>> normalise_caption('A man , in a T-shirt , rides the "big" wave .')
        'a man in a t-shirt rides the big wave'
    """
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'").replace("&", " and ")
    text = re.sub(r"[^\w'\- ]|_|(?<!\w)['-]+|['-]+(?!\w)", " ", text)
    return " ".join(text.split())
