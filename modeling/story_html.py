"""A story as HTML: for the page as it grows, and as one file with its photos inside, to keep and to send.

Everything that a model or a person wrote is escaped: captions, passages, names of files and styles are letters,
whatever they look like. The file needs nothing from elsewhere and runs no script.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from .errors import ImageError
from .images import load_image
from .story import Passage, Story, StoryPhoto
from .story_types import STORYTELLER

PICTURE_SIDE = 1024  # of the photos in a file, in pixels

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="Pictale">
<title>{title}</title>
<style>
:root {{color-scheme: light dark}}
body {{max-width: 38rem; margin: 3rem auto; padding: 0 1.2rem; background: #faf7f1; color: #29231c;
  font: 1.15rem/1.75 "Iowan Old Style", Palatino, "Palatino Linotype", "Book Antiqua", Georgia, serif}}
h1 {{font-size: 1.6rem; line-height: 1.3; font-weight: normal}}
figure {{margin: 2rem 0 1rem}}
img {{max-width: 100%; border-radius: 4px}}
figcaption, .origin, footer {{font: .82rem/1.5 system-ui, sans-serif; color: #6b6156}}
.own {{font-style: italic}}
footer {{margin-top: 3rem; border-top: 1px solid #d9cfbf; padding-top: .8rem}}
@media (prefers-color-scheme: dark) {{
  body {{background: #1d1a16; color: #e8e0d2}}
  figcaption, .origin, footer {{color: #b0a594}}
}}
</style>
</head>
<body>
<h1>{title}</h1>
<main>{story}</main>
<footer>Told by Pictale: a machine looked at the photos and made the story up.</footer>
</body>
</html>
"""


def style_in_words(label: str) -> str:
    """What people call a style or blend: `science_fiction` is "Science fiction", `a:0.7,b:0.3` "A 70 %, B 30 %"."""
    parts = []
    for part in label.split(","):
        name, _, share = part.partition(":")
        name = name.replace("_", " ").strip()
        parts.append(name[:1].upper() + name[1:] + (f" {float(share):.0%}".replace("%", " %") if share else ""))
    return ", ".join(parts)


def origin_in_words(story: Story, passage: Passage) -> str:
    """Where a passage came from: its photo or sentence, the style, the seed, the book whose manner it has."""
    if passage.origin == "user":
        return "your own words"
    said = {"sentence": "from your sentence", "story": "from the story so far"}.get(passage.origin, "")
    if passage.photo is not None:
        photo = f"photo {passage.photo + 1}"
        said = f"{said} and {photo}" if said else f"from {photo}"
    strength = "" if passage.strength == 1 else f" at strength {passage.strength:g}"
    parts = [said, f"{style_in_words(passage.style)}{strength}", f"seed {passage.seed}"]
    if passage.writer != STORYTELLER:
        parts.append(f"written by {passage.writer}")
    parts += [f"in the manner of {book}" for book in passage.follows]
    if passage.edited:
        parts.append("edited by hand")
    return " · ".join(part for part in parts if part)


def story_html(story: Story, pictures: Sequence[bytes | None] | None = None, heading: bool = True) -> str:
    """The passages of a story in order, its title first, each with where it came from, photos where they come in.

    Args:
        story: The story.
        pictures: A JPEG for each of its photos; None: the thumbnails it has.
        heading: Whether the title is shown.

    Returns:
        HTML whose last elements are left open, as HTML allows: the markup of a growing story begins with the markup it
        had a word before, so that only the word has to be sent.
    """
    photos = story.photos
    pictures = [photo.thumbnail for photo in photos] if pictures is None else pictures
    parts, shown = [f"<h3>{_letters(story.title)}</h3>"] if heading and story.title else [], set()
    passages = story.passages
    for i, passage in enumerate(passages):
        if passage.photo is not None and passage.photo not in shown:
            shown.add(passage.photo)
            parts.append(_figure(photos[passage.photo], passage.photo, pictures[passage.photo]))
        kind = "passage own" if passage.origin == "user" else "passage"
        origin = _letters(origin_in_words(story, passage))
        text = _letters(passage.shown).replace("\n", "<br>")
        books = "".join(f'<span class="origin"> — {_letters(str(book))}</span>' for book in passage.sources)
        closed = "</p></section>" if i < len(passages) - 1 else ""
        parts.append(f'<section><p class="origin">{origin}</p><p class="{kind}">{text}{books}{closed}')
    return "".join(parts)


def story_page(story: Story, photos: Sequence[Any] = (), title: str | None = None) -> str:
    """One self-contained HTML file with the story and its photos, for any browser, light or dark.

    Args:
        story: The story.
        photos: For each of its photos what `load_image` reads, or None; where nothing can be read, the thumbnail that
            the story keeps takes its place.
        title: The heading; None: the story's title, or the first caption.
    """
    sources = [*photos, *[None] * len(story.photos)]
    pictures = [_picture(source, photo.thumbnail) for source, photo in zip(sources, story.photos, strict=False)]
    if title is None and not (title := story.title):
        captions = (photo.captions[0].text for photo in story.photos if photo.captions)
        title = next(captions, "A story")
    title = title[:1].upper() + title[1:]
    return _PAGE.format(title=_letters(title), story=story_html(story, pictures, heading=False) + "</p></section>")


def _letters(text: str) -> str:
    """Text that no browser takes for markup."""
    return html.escape(text, quote=True)


def _figure(photo: StoryPhoto, index: int, picture: bytes | None) -> str:
    caption = photo.captions[0].text if photo.captions else photo.name or "a photo"
    image = ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        image = f'<img alt="Photo {index + 1}: {_letters(caption)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>Photo {index + 1}: {_letters(caption)}</figcaption></figure>"


def _picture(source: Any, thumbnail: bytes | None) -> bytes | None:
    if source is None:
        return thumbnail
    try:
        image = load_image(source)
    except ImageError:
        return thumbnail
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()
