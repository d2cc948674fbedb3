"""How a story came about, as HTML: where the captioner looked for each word, and why each sentence won.

Everything that a model wrote is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .heatmaps import attention_overlay
from .story import Passage
from .story_html import style_in_words
from .story_types import Candidate, Caption

STRIP_SIDE, FIGURE_SIDE = 224, 1024  # pixels
SHOWN_CANDIDATES = 4
NOTHING = (
    "<p>There is nothing to compare: tell a story first. A loaded story does not hold what it was chosen from, and a "
    "language model writes only one.</p>"
)
NEARNESS = "What it remembers, and how near that is to the photo (1: the same)"
SCORES = {
    "picture": "how near the story so far is to the photo itself, beyond the captions",
    "words": "how many of the words from the captions it takes up",
    "style": "how much it sounds like the style and no other",
    "likelihood": "how well its words follow each other, to the writer",
    "repetition": "how many of its turns of phrase were said before (counts against it)",
}


def word_strip(image: Image.Image, caption: Caption) -> str:
    """The figure of Show, Attend and Tell: the photo once for each word of a caption, lit where the captioner looked.

    Args:
        image: The photo.
        caption: With its attention maps [words, rows, columns]; a caption without any gives "".
    """
    words = range(len(caption.attention))
    figures = "".join(word_figure(image, caption, word, STRIP_SIDE) for word in words)
    return f'<div class="strip">{figures}</div>' if figures else ""


def word_figure(image: Image.Image, caption: Caption, word: int, side: int = FIGURE_SIDE) -> str:
    """The photo, at most `side` pixels a side, lit where the captioner looked for word number `word` of a caption."""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    attention = caption.attention[word]
    attention_overlay(small, attention).save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    said = _letters(caption.words[word])
    picture = f'<img alt="for “{said}” it looked {where_in_words(attention)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture}<figcaption>{said}</figcaption></figure>"


def where_in_words(attention: np.ndarray) -> str:
    """The part of the photo with the most attention [rows, columns], for those who cannot see the map."""
    rows, columns = np.unravel_index(int(attention.argmax()), attention.shape)
    row = ("at the top", "in the middle", "at the bottom")[min(int(3 * rows / attention.shape[0]), 2)]
    column = (" on the left", "", " on the right")[min(int(3 * columns / attention.shape[1]), 2)]
    return row + column


def caption_list(captions: Sequence[Caption]) -> str:
    """Captions, best first: those it wrote with how sure it was of their words, those it remembers with how near.

    Where there are both, the remembered ones wait to be opened.
    """
    kinds = (
        ("What it sees, and how sure it was of each word", [c for c in captions if not c.remembered], _sureness),
        (NEARNESS, [c for c in captions if c.remembered], _nearness),
    )
    parts = []
    for title, found, number in kinds:
        items = "".join(f"<li>{_letters(c.text)} <small>({number(c.score)})</small></li>" for c in found)
        if found and any(parts):
            parts.append(f'<details><summary class="origin">{title}</summary><ol>{items}</ol></details>')
        else:
            parts.append(f'<p class="origin">{title}</p><ol>{items}</ol>' if found else "")
    return "".join(parts)


def caption_table(captions: Sequence[Caption]) -> str:
    """The captions that it wrote, in the order of their scores; "" without any."""
    rows = "".join(
        f"<tr><td>{_letters(c.text)}</td><td>{_sureness(c.score)}</td><td>{c.score:.2f}</td></tr>"
        for c in captions
        if not c.remembered
    )
    if not rows:
        return ""
    head = "<tr><th>caption</th><th>sure of each word</th><th>mean log-probability</th></tr>"
    return f"<div class='table'><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def nearest_list(neighbours: Sequence[tuple[str, float, int]]) -> str:
    """Sentences of the bank that a photo brings to mind, nearest first, each with its cosine."""
    items = "".join(f"<li>{_letters(text)} <small>({_nearness(cosine)})</small></li>" for text, cosine, _ in neighbours)
    return f'<p class="origin">{NEARNESS}</p><ol>{items}</ol>'


def why_this_story(passages: Sequence[Passage]) -> str:
    """For each sentence of a story the best candidates with all their scores, the one that was taken first."""
    parts = []
    for number, passage in enumerate(passages, 1):
        if not passage.choices:
            continue
        title = f"Passage {number}: {style_in_words(passage.style)}, seed {passage.seed}"
        parts.append(f"<h3>{_letters(title)}</h3>")
        parts.extend(_choice(choice, first=not parts[1:]) for choice in passage.choices)
    if not parts:
        return NOTHING
    meanings = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in SCORES.items())
    return f"{''.join(parts)}<details><summary>What the scores mean</summary><dl>{meanings}</dl></details>"


def _choice(candidates: Sequence[Candidate], first: bool) -> str:
    best = candidates[: SHOWN_CANDIDATES + 1]
    names = list(dict.fromkeys(name for candidate in best for name in candidate.scores))
    head = "".join(f"<th>{_letters(name)}</th>" for name in ("sentence", "sum", *names))
    rows = []
    for place, candidate in enumerate(best):
        cells = [f"{candidate.score:.2f}", *(_number(candidate.scores.get(name)) for name in names)]
        text = f"<b>{_letters(candidate.text)}</b>" if place == 0 else _letters(candidate.text)
        rows.append(f"<tr><td>{text}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    summary = f"{_letters(candidates[0].text)} <small>best of {len(candidates)}</small>"
    table = f"<div class='table'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    return f"<details{' open' if first else ''}><summary>{summary}</summary>{table}</details>"


def _sureness(mean_log_probability: float) -> str:
    return f"{np.exp(mean_log_probability):.0%}"


def _nearness(cosine: float) -> str:
    return f"{cosine:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _letters(text: str) -> str:
    return html.escape(text, quote=True)
