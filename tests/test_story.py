"""A story as a record: steps, undoing, editing, files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from modeling import Caption, Passage, PictaleError, Source, Story, StoryError, StoryPhoto
from modeling.story import MAX_FILE_BYTES, MAX_TEXT, Step


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (300, 400, 3), dtype=np.uint8))


DRACULA = Source("Dracula", "Bram Stoker", 1897)


def told(text: str, **changes) -> Passage:
    settings = {"origin": "story", "style": "romance", "seed": 1, "scores": {"words": 0.5}}
    return Passage(text, **{**settings, **changes})


@pytest.fixture
def story() -> Story:
    photo = StoryPhoto.of(
        image(), [Caption("A dog runs.", -0.5, ("a", "dog", "runs")), Caption("A *cat*.", -1.0)], "a.jpg"
    )
    story = Story().add(
        Step((photo,), (told("The dog ran, and ran.", origin="photo", photo=0, title="The Dog", follows=(DRACULA,)),))
    )
    story = story.add(Step(passages=(Passage('Then  "he"\nleft <b>.', "user"), told("He was gone.", lyrics=True))))
    return story.edit(0, "  The dog, it ran. ")


def test_passages_and_text(story):
    assert [p.origin for p in story.passages] == ["photo", "user", "story"]
    assert story.passages[0].edited and not story.passages[1].edited
    assert story.text == '  The dog, it ran. \n\nThen  "he"\nleft <b>.\n\nHe was gone.'
    lyric = Story((Step(passages=(told("He came, he saw. He left.", lyrics=True),)),))
    assert lyric.text == "He came\nHe saw.\nHe left." and lyric.passages[0].text == "He came, he saw. He left."
    assert lyric.edit(0, "He came, he saw.").text == "He came, he saw."


def test_undo_goes_back_step_by_step(story):
    unedited = story.undo()
    assert unedited.passages[0].text == "The dog ran, and ran." and unedited.edit(0, "  The dog, it ran. ") == story
    assert len(unedited.undo().passages) == 1  # the sentence goes with what it led to
    assert unedited.undo().undo() == Story()
    with pytest.raises(StoryError, match="nothing to undo"):
        Story().undo()


def test_a_story_does_not_change(story):
    before = story.to_json()
    story.edit(-1, "Other."), story.undo(), story.add(Step())
    assert story.to_json() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        story.steps = ()


def test_an_edit_from_the_end(story):
    assert story.edit(-1, "Other.") == story.edit(2, "Other.")


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.edit(3, "Text."),
        lambda s: s.edit(-4, "Text."),
        lambda s: s.edit(0, " "),
        lambda s: s.edit(0, "half \ud83d"),
        lambda s: s.edit(0, "x" * (MAX_TEXT + 1)),
        lambda s: s.save("/proc/no/such/story.json"),
    ],
)
def test_bad_steps_are_one_sentence(story, call):
    with pytest.raises(StoryError) as caught:
        call(story)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_json_keeps_everything(story, tmp_path):
    assert Story.from_json(story.to_json()) == story
    assert Story.from_json(story.to_json().encode()) == story
    assert Story.from_json(Story().to_json()) == Story()
    story.save(tmp_path / "new" / "story.json")
    assert Story.load(tmp_path / "new" / "story.json") == story
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["story.json"]
    again = Story.load(tmp_path / "new" / "story.json")
    while again.steps:
        again, story = again.undo(), story.undo()
        assert again == story


def test_a_story_has_the_title_that_its_writer_gave_it(story):
    assert story.title == "The Dog" and story.undo().undo().undo().title == Story().title == ""
    later = Story((Step(passages=(told("A."), told("B.", title="So"), told("C.", title="No"))),))
    assert later.title == "So"
    assert Story((Step(passages=(told("A.", title="*So* <b>"),)),)).to_markdown().startswith("# \\*So\\* \\<b\\>\n")


def test_files_of_the_first_edition_are_read(story):
    """They had no titles, nor pages that were followed, and named the words that a passage took up."""
    record = json.loads(story.to_json())
    for step in record["steps"]:
        for passage in step.get("passages", ()):
            for name in ("title", "follows"):
                passage.pop(name, None)
            passage |= {"content_words": ["dog"], "writer": "decoder"}
    del record["steps"][1]["passages"][0]["writer"]
    old = Story.from_json(json.dumps(record))
    assert old.text == story.text and old.title == ""
    assert {passage.writer for passage in old.passages} == {"storyteller"} and not any(p.follows for p in old.passages)
    assert Story.from_json(old.to_json()) == old


def test_the_same_photo_has_the_same_digest_and_a_small_thumbnail(tmp_path):
    import io

    from modeling import load_image

    image().save(tmp_path / "a.png")
    photos = [StoryPhoto.of(load_image(source), []) for source in (image(), tmp_path / "a.png", np.asarray(image()))]
    assert len({p.sha256 for p in photos}) == 1 != len({photos[0].sha256, StoryPhoto.of(image(1), []).sha256}) - 2
    assert StoryPhoto.of(image(1), []).sha256 != photos[0].sha256
    with Image.open(io.BytesIO(photos[0].thumbnail)) as small:
        assert small.size == (256, 192) and small.format == "JPEG"
    assert StoryPhoto.of(image(), [], thumbnail=False).thumbnail is None


def test_markdown_is_for_reading(story):
    text = story.to_markdown()
    assert text.startswith("# The Dog\n\n![A dog runs.](data:image/jpeg;base64,")
    assert "\n\n— in the manner of Dracula, Bram Stoker (1897)\n\n" in text
    assert "left \\<b\\>." in text and "romance, seed 1" in text
    assert text.count("data:image") == 1
    bare = Story((Step((StoryPhoto((Caption("A *cat*.", 0.0),), "0" * 64),), (told("1. One\n- two", photo=0),)),))
    assert bare.to_markdown() == "*A \\*cat\\*.*\n\n1\\. One  \n\\- two\n\n*romance, seed 1*\n"


# -- files that are none -----------------------------------------------------------------------------------------------
def spoil(record, path, value):
    *parents, last = path
    for key in parents:
        record = record[key]
    if value is KeyError:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format"], "other", "not a story"),
        (["version"], 2, "newer"),
        (["steps"], "x", "damaged"),
        (["steps", 0], 5, "damaged"),
        (["steps", 0, "photos", 0, "sha256"], KeyError, "sha256"),
        (["steps", 0, "photos", 0, "sha256"], "../../etc/passwd", "sha256"),
        (["steps", 0, "photos", 0, "captions", 0, "score"], float("nan"), "score"),
        (["steps", 0, "photos", 0, "captions", 0, "words"], [1], "words"),
        (["steps", 0, "photos", 0, "thumbnail"], "!!!", "thumbnail"),
        (["steps", 0, "photos", 0, "thumbnail"], "PHNjcmlwdD4=", "no JPEG"),
        pytest.param(["steps", 0, "photos", 0, "thumbnail"], "A" * 300_000, "thumbnail", id="endless thumbnail"),
        (["steps", 0, "passages", 0, "text"], None, "text"),
        pytest.param(["steps", 0, "passages", 0, "text"], "x" * (MAX_TEXT + 1), "too long", id="endless text"),
        (["steps", 0, "passages", 0, "photo"], 1, "photo that is not there"),
        (["steps", 0, "passages", 0, "seed"], True, "seed"),
        pytest.param(["steps", 0, "passages", 0, "seed"], 10**400, "seed", id="endless seed"),
        pytest.param(["steps", 0, "passages", 0, "text"], "half \ud83d", "text", id="half a character"),
        (["steps", 0, "passages", 0, "origin"], "machine", "origin"),
        (["steps", 0, "passages", 0, "scores"], {"a": "b"}, "damaged"),
        (["steps", 0, "passages", 0, "title"], 5, "title"),
        (["steps", 0, "passages", 0, "follows"], "Dracula", "follows"),
        (["steps", 0, "passages", 0, "follows"], [{"title": "Dracula"}], "author"),
        (["steps", 0, "passages", 0, "writer"], ["storyteller"], "writer"),
        (["steps", 2, "edit", "passage"], 3, "edits a passage"),
        (["steps", 2, "edit", "passage"], -1, "edits a passage"),
        (["steps", 2, "edit", "text"], "", "empty"),
    ],
)
def test_damaged_foreign_and_newer_files_are_one_sentence(story, tmp_path, path, value, says):
    record = json.loads(story.to_json())
    spoil(record, path, value)
    (tmp_path / "story.json").write_text(json.dumps(record))
    with pytest.raises(StoryError, match=says) as caught:
        Story.load(tmp_path / "story.json")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[]", b"null", b"[" * 100_000, b'{"format": "pictale-story"}x', b"1"]
)
def test_anything_else_is_no_story(tmp_path, content):
    (tmp_path / "story.json").write_bytes(content)
    with pytest.raises(StoryError):
        Story.load(tmp_path / "story.json")


def test_cut_files_and_huge_ones_are_refused(story, tmp_path):
    whole = story.to_json()
    for cut in range(0, len(whole) - 1, len(whole) // 50):
        with pytest.raises(StoryError):
            Story.from_json(whole[:cut])
    with pytest.raises(StoryError, match="larger"):
        Story.from_json(" " * (MAX_FILE_BYTES + 1))
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(StoryError, match="too large"):
        Story.load(tmp_path / "huge.json")
    with pytest.raises(PictaleError, match="cannot be read"):
        Story.load(tmp_path / "none.json")
    with pytest.raises(PictaleError, match="cannot be read"):
        Story.load(tmp_path)
