"""A language model's answer becomes a passage: greetings, titles and markup go, and what was shown stays."""

import pytest

from modeling.answer_text import Answer

STORY = "The dog ran. It saw a red house, and stopped at once by the open door."


def heard(raw: str, before: str = "", said_all: bool = True, size: int = 3, **limits) -> str:
    """The passage of an answer that comes in pieces; each text begins with the one before."""
    answer = Answer(before, limits.pop("least", 0), limits.pop("most", 1000), **limits)
    shown = ""
    for start in range(0, len(raw), size):
        text = answer.add(raw[start : start + size])
        assert text.startswith(shown), (shown, text)
        shown = text
        if answer.enough:
            said_all = False
            break
    final = answer.end(said_all)
    assert final.startswith(shown), (shown, final)
    return final


@pytest.mark.parametrize("size", [1, 4, 10_000])
@pytest.mark.parametrize(
    "raw",
    [
        STORY,
        f"\n\n  {STORY}  \n",
        f"Sure! Here is a short story about a dog:\n\n{STORY}",
        f"Certainly. Here's the next part of the story: {STORY}",
        f"Of course! I will write a page of a mystery novel.\n{STORY}",
        f"Sure!\n\n{STORY}",
        f"**The Dog and the Door**\n\n{STORY}",
        f"# The Dog: A Tale\n{STORY}",
        f"Title: The Dog\n\n{STORY}",
        f"The Dog at the Door\n\n{STORY}",
        f"Chapter One\n\n{STORY}",
        f"Story: {STORY}",
        f"```\n{STORY}\n```",
        f"```markdown\n**Dog**\n{STORY}\n```\n",
        f"---\n{STORY}\n---",
        f"> {STORY}",
        f"<think>\nThe user wants a dog.\n\nI could: begin.\n</think>\n\n{STORY}",
        f"{STORY}\n\nThe End",
        f"{STORY}\n\n*The end.*\n",
        f"{STORY}\n\nI hope you enjoyed this story! Let me know what to change.",
        f"{STORY}\n\n(Word count: 15)",
        f"{STORY}\n\nNote: the photo shows a dog.",
        f"{STORY}\n\nShows: a cat\nPage: The cat slept.",
        STORY.replace("red house", "**red** _house_"),
        STORY.replace("red house", "*red* `house`"),
    ],
)
def test_only_the_story_is_left(raw, size):
    assert heard(raw, size=size) == STORY


@pytest.mark.parametrize(
    "raw",
    [
        "Sure enough, the dog was there, and it did not move at all when we came near.",
        "This is what he said: go home, and do not come back before the night is over.",
        "Here is where the old man lived, they said, a long time ago, when the sea was near.",
        "The end of the road was near.\n\nThe end of the night was not, and nobody said a word.",
        "Once snake_case and 2 * 3 = 6 were on the wall of a house.".replace(" * ", " times "),
        "“Come in,” she said.\n\n“No,” said he. “Not today.”",
        "Chapters of his life went by as he looked at the sea.",
    ],
)
def test_a_story_that_looks_like_something_else_stays(raw):
    assert heard(raw) == raw


def test_markup_of_the_web_stays_letters():
    assert heard("A <b>dog</b> & a <script>alert(1)</script> cat.") == "A <b>dog</b> & a <script>alert(1)</script> cat."


def test_quotation_marks_get_sides_and_are_closed():
    assert heard('"Come," she said. "I know that') == "“Come,” she said. “I know that.”"
    assert heard('He said: "Go home now, all of you', said_all=False) == "He said: “Go home now, all of…”"


def test_what_goes_on_repeats_nothing():
    before = "It was late. The dog ran. It saw a house."
    assert heard(f"It saw a house. {STORY}", before) == STORY
    assert heard(f"The dog ran. It saw a house. {STORY}", before) == STORY
    assert heard("It saw a house, and a garden.", before) == "It saw a house, and a garden."
    assert heard(" and went on.", "The dog stopped") == "and went on."  # the story so far broke off
    assert heard("and went on.", "The dog stopped.") == "And went on."


def test_length_is_kept_and_the_last_sentence_is_whole():
    sentence = "There was an old dog by the sea. "  # 8 words
    for most in (8, 30, 50):
        words = len(heard(sentence * 40, most=most).split())
        assert words % 8 == 0 and most - 8 < words <= most
    assert len(heard(sentence * 3, most=50).split()) == 24  # it ended by itself
    assert len(heard("word " * 200, most=3, longest_sentence=10).split()) == 13
    assert heard("word " * 200, most=10, longest_sentence=5).endswith(" word…")
    assert len(heard(sentence + "word " * 20 + "end. " + sentence * 3, most=10, least=9).split()) == 29


def test_an_abbreviation_ends_no_sentence():
    answer = Answer("", 0, 3)
    answer.add("It was Mr. ")
    assert answer.text == "It was Mr." and not answer.enough


def test_nothing_said_is_nothing():
    for raw in ("", "\n \n", "<think>What could I say", "Sure!", "# The Dog"):
        assert heard(raw) == ""
