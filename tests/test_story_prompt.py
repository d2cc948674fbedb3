"""The request for a story: exactly the text that the storyteller is trained on, and the same for other models."""

import numpy as np
import pytest

from modeling import StoryOptions
from modeling.reranking import Wish
from modeling.story_prompt import (
    GENRES,
    MOST_CAPTION_WORDS,
    MOST_CAPTIONS,
    MOST_PAGE_WORDS,
    PAGE_STYLE,
    StoryPrompt,
    as_sentences,
    different,
    kind_of,
    newest,
    one_line,
    shortened_page,
    story_prompt,
)
from modeling.writer import PassageTask

SHOES = ("a pair of yellow shoes", "A suitcase with red lining.")


def task(label="mystery", before="", captions=SHOES, new_photo=True, perhaps=(), **options) -> PassageTask:
    wish = Wish(np.zeros(3, np.float32), before=before)
    return PassageTask(
        np.zeros(3, np.float32), wish, 1, StoryOptions(**options), label, captions, perhaps, new_photo=new_photo
    )


# -- the storyteller's ------------------------------------------------------------------------------------------------
def test_the_text_is_the_documented_one():
    """The example at the head of `modeling.story_prompt`."""
    prompt = StoryPrompt(
        "a mystery",
        SHOES,
        page="He let a hen pheasant pass over his head, and brought down a cock.",
        perhaps=("Two suitcases stand in a hall.",),
        objects=("suitcase", "shoe"),
    )
    assert prompt.text() == (
        "Write a mystery, medium.\n"
        "Page: He let a hen pheasant pass over his head, and brought down a cock.\n"
        "Photo: A pair of yellow shoes. A suitcase with red lining.\n"
        "Perhaps: Two suitcases stand in a hall.\n"
        "Objects: suitcase, shoe\n"
        "Title:"
    )
    from modeling import story_prompt as module

    documented = "\n".join(line[4:] for line in module.__doc__.split("\n\n")[2].split("\n"))
    assert prompt.text() == documented


def test_what_there_is_nothing_to_say_of_is_left_out():
    assert StoryPrompt("a story", (), "short").text() == "Write a story, short.\nTitle:"
    assert StoryPrompt("a story", SHOES[:1], "long").text() == (
        "Write a story, long.\nPhoto: A pair of yellow shoes.\nTitle:"
    )


def test_a_story_goes_on_without_a_title():
    so_far = StoryPrompt("a mystery", SHOES[:1], before="She saw\n\nthe shoes. “Mine!”")
    assert so_far.text() == (
        'Write a mystery, medium.\nPhoto: A pair of yellow shoes.\nStory: She saw the shoes. "Mine!"\nNext:'
    )


def test_a_new_photo_stands_after_the_story():
    prompt = story_prompt(task(before="She saw shoes.", captions=("A man waits at a bus stop.",)), "She saw shoes.")
    assert prompt.text() == (
        "Write a mystery, medium.\nStory: She saw shoes.\nNew photo: A man waits at a bus stop.\nNext:"
    )
    first = story_prompt(task(captions=("A man waits at a bus stop.",)), "")
    assert first.text() == "Write a mystery, medium.\nPhoto: A man waits at a bus stop.\nTitle:"
    known = story_prompt(task(before="She saw shoes.", new_photo=False), "She saw shoes.")
    assert known.text().split("\n")[1] == "Photo: A pair of yellow shoes. A suitcase with red lining."


def test_what_a_photo_brings_to_mind_is_told_where_a_story_begins():
    perhaps = ("A hall.",)
    assert "\nPerhaps: A hall.\n" in story_prompt(task(perhaps=perhaps), "").text()
    assert "Perhaps" not in story_prompt(task(perhaps=perhaps, before="So."), "So.").text()


@pytest.mark.parametrize(
    "told",
    [
        lambda said: {"page": said},
        lambda said: {"before": said},
        lambda said: {"shows": (said,)},
        lambda said: {"perhaps": (said,)},
        lambda said: {"before": "So.", "scene": (said,)},
    ],
)
def test_quotation_marks_are_straight_everywhere(told):
    prompt = StoryPrompt(**{"kind": "a story", "shows": SHOES} | told("He said:\n “No — it’s mine … ‘now’.”"))
    assert "He said: \"No -- it's mine ... 'now'.\"" in prompt.text()
    assert not set("“”‘’—…\r\t") & set(prompt.text())


def test_one_line():
    assert one_line(" a\n\nb\t“c”  d—e ") == 'a b "c" d--e'


def test_the_length_is_named():
    for length in ("short", "medium", "long"):
        assert story_prompt(task(length=length), "").text().startswith(f"Write a mystery, {length}.\n")


# -- kinds ------------------------------------------------------------------------------------------------------------
def test_styles_in_words():
    assert kind_of("romance") == ("a romance", f" Its manner: {GENRES['romance'][1]}.")
    kind, manner = kind_of("horror:0.3,fairy_tale:0.7", 1.5)
    assert kind == "a fairy tale that has something of a horror story"
    assert "wonders" in manner and "dread" in manner and "thickly" in manner
    assert kind_of("aunt  may")[0] == "a book called “aunt may”"
    assert kind_of("romance", 0) == ("a story", "") == kind_of("")
    assert "hint" in kind_of("romance", 0.5)[1] and "hint" in kind_of("aunt may", 0.5)[1]
    assert set(GENRES) == {"everyday", "romance", "adventure", "science_fiction", "mystery", "horror", "fairy_tale"}


def test_a_style_of_ones_own_is_named_by_its_page():
    assert kind_of("aunt may", page=True)[0] == PAGE_STYLE == "a story in the manner of this page"
    assert kind_of("aunt may:0.6,horror:0.4", page=True)[0] == f"{PAGE_STYLE} that has something of a horror story"
    assert kind_of("horror", page=True)[0] == "a horror story"
    prompt = story_prompt(task("aunt may"), "", "She was old. She knew.")
    assert prompt.text().startswith(f"Write {PAGE_STYLE}, medium.\nPage: She was old. She knew.\nPhoto: ")


def test_a_song_is_called_one():
    assert kind_of("romance", lyrics=True)[0] == "a song like a romance"
    assert kind_of("", lyrics=True)[0] == kind_of("romance", 0, lyrics=True)[0] == "a song"
    assert story_prompt(task("romance", lyrics=True), "").text().startswith("Write a song like a romance, medium.\n")


def test_a_blend_is_one_kind_the_greater_share_first():
    prompt = story_prompt(task("romance:0.2,horror:0.5,mystery:0.3"), "")
    kind = "a horror story that has something of a mystery that has something of a romance"
    assert prompt.text().startswith(f"Write {kind}, medium.\n")


# -- captions ---------------------------------------------------------------------------------------------------------
def test_captions_are_sentences():
    captions = ["a dog runs", " A cat.", "who is it?", "stop!", "“No”", "red; ", "", " ."]
    assert as_sentences(captions) == 'A dog runs. A cat. Who is it? Stop! "No" Red.'


def test_captions_that_say_the_same_are_said_once():
    same = ["A brown dog runs on a path.", "A brown dog runs on a road.", "A path.", "Two men with a ball."]
    assert different(same) == [same[0], same[3]]
    assert different([]) == []


def test_there_are_no_more_captions_than_the_model_has_learned():
    words = "dog cat horse bird cow pig hen duck goose sheep".split()
    captions = [f"A {one} and a {two}." for one, two in zip(words, words[1:] + ["goat"], strict=True)][::2]
    captions += [f"The {word} of the king." for word in ("crown", "castle")] + ["A queen with a sword."]
    prompt = story_prompt(task(captions=tuple(captions)), "")
    assert prompt.shows == tuple(captions[:MOST_CAPTIONS]) and len(captions) > MOST_CAPTIONS


def test_a_very_long_caption_is_cut_to_its_end():
    letter = " ".join(f"Sentence number {i} tells of a thing." for i in range(100))
    (kept,) = story_prompt(task(captions=(letter,)), "").shows
    assert len(kept.split()) <= MOST_CAPTION_WORDS and letter.endswith(kept) and kept.startswith("Sentence number ")
    endless = "word " * 5000
    (kept,) = story_prompt(task(captions=(endless,)), "").shows
    assert kept == " ".join(["word"] * MOST_CAPTION_WORDS)


# -- long stories -----------------------------------------------------------------------------------------------------
def test_the_newest_of_a_story_whole_sentences_oldest_first_to_go():
    assert newest("One two. Three four. Five six.", 4) == "Three four. Five six."
    assert newest("One two. Three four. Five six.", 5) == "Three four. Five six."
    assert newest("One two. Three four. Five six.", 6) == "One two. Three four. Five six."
    assert newest("one two three four", 3) == "two three four" and newest("One.", 3) == "One."
    assert newest("", 3) == ""


def test_a_page_is_its_first_sentences():
    sentence = "He let a hen pheasant pass over his head."  # nine words
    page = shortened_page(" ".join([sentence] * 20))
    assert page == " ".join([sentence] * (MOST_PAGE_WORDS // 9))
    assert shortened_page("“No,”\nhe  said.") == '"No," he said.'
    assert shortened_page("word " * 300) == "" == shortened_page("")  # one endless sentence


# -- other models -----------------------------------------------------------------------------------------------------
def test_a_conversation_asks_for_the_same():
    prompt = StoryPrompt(
        "a mystery", SHOES, "short", "He “sat”.", ("A hall.",), ("shoe",), traits=" Its manner: clues."
    )
    system, ask = prompt.messages(opening=True)
    assert system["role"] == "system" and system["content"].endswith("comment or formatting. Its manner: clues.")
    assert ask == {
        "role": "user",
        "content": "Write a passage of a mystery, 28 to 48 words.\n\n"
        'Take the manner, not the content, of this page:\nHe "sat".\n\n'
        "The photo shows: A pair of yellow shoes. A suitcase with red lining. It may also show: A hall. "
        "Things in it: shoe.",
    }
    assert prompt.opening() == ""


def test_a_conversation_goes_on():
    prompt = StoryPrompt("a mystery", SHOES, before="“So.”")
    assert prompt.opening() == "“So.”" and len(prompt.messages(opening=True)) == 2
    told, ask = prompt.messages(opening=False)[-2:]
    assert told == {"role": "assistant", "content": "“So.”"}
    assert ask == {"role": "user", "content": "Go on with the story from there."}
    scene = StoryPrompt("a mystery", (), before="So.", scene=("a horse",))
    assert scene.opening() == ""
    for opening in (True, False):
        assert scene.messages(opening)[-1]["content"] == (
            "Go on with the story from there. Now the photo shows: A horse."
        )


def test_a_model_without_conversation_finds_the_story_begun():
    prompt = StoryPrompt("a mystery", SHOES[:1])
    start = "Write a mystery, medium.\nPhoto: A pair of yellow shoes.\n"
    assert prompt.plain() == f"{start}Story:"
    assert StoryPrompt("a mystery", SHOES[:1], before="So.").plain() == f"{start}Story: So."
    scene = StoryPrompt("a mystery", (), before="So.", scene=("a horse",)).plain()
    assert scene == "Write a mystery, medium.\nStory: So.\n\nNew photo: A horse.\nStory:"
