"""Names, pronouns and words that hold a story together."""

import pytest

from modeling.story_thread import (
    CARRY_DECAY,
    Cast,
    begins_in_the_middle,
    carried_words,
    colours_of_people,
    last_words,
    names_in,
    persons_in,
)

# as decoders have it: a word written small most of the time comes before its capital form, which may be missing
VOCABULARY = {
    w: i for i, w in enumerate(". , “ ” the dog man woman he she ran a rose Rose Mary then said I and to go Go".split())
}


def test_names_are_told_from_first_words():
    text = "The dog ran to Mary. Then Gerald said: “Go, Mary!” I ran. Mr Rochester and the Rose."
    assert names_in(text, VOCABULARY) == ["Mary", "Gerald", "Rochester", "Rose"]
    assert names_in("Rose ran. The dog. “Then I go.”", VOCABULARY) == []  # a rose more often than a Rose
    assert names_in("", VOCABULARY) == []


def test_the_last_words_are_whole_sentences_as_the_decoder_writes():
    text = 'The dog ran. Then Mary said, "Go to the man." I ran.'
    assert last_words(text, VOCABULARY, 3) == ["I", "ran", "."]
    assert last_words(text, VOCABULARY, 15) == [*"then Mary said , “ Go to the man . ”".split(), "I", "ran", "."]
    assert last_words(text, VOCABULARY, 100)[:4] == ["the", "dog", "ran", "."]
    assert last_words(text, VOCABULARY, 0) == last_words("", VOCABULARY, 9) == []


@pytest.mark.parametrize(
    ("before", "text", "breaks"),
    [
        ("A man ran.", "He ran.", 0),
        ("A man ran.", "Then she ran.", 1),
        ("A man ran.", "Then she ran, and she said: go, her dog.", 1),  # she is one person
        ("A man ran.", "A woman ran, and she said: go.", 0),  # somebody new, who is introduced
        ("A man and a woman ran.", "She said he ran.", 0),
        ("A dog ran.", "She ran.", 0),  # the first to say what it is
        ("A dog ran.", "She ran, and he ran.", 1),
        ("She ran.", "Then he ran.", 1),
        ("A dog ran.", "Mary ran.", 0),  # a story may name somebody
        ("A dog ran.", "Mary and Gerald ran.", 1),
        ("Mary ran.", "Gerald ran to Mary, and Edward.", 2),
        ("Mary ran.", "Mary said: go.", 0),
        ("", "", 0),
    ],
)
def test_what_breaks_the_thread(before, text, breaks):
    assert Cast.of([before], "", VOCABULARY).breaks(text, VOCABULARY) == breaks


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("I saw a black man.", ["black"]),
        ("He saw a black figure of a black man in the doorway.", ["black", "black"]),
        ("Black and white people sat there.", ["black", "white"]),
        ("A white old lady and the boy who was brown.", ["white"]),  # "who" is not looked behind
        ("The boy was very brown.", ["brown"]),
        ("A man in a black jacket.", []),
        ("The jacket was black, and the man ran.", []),
        ("A black dog and a man in white. The men walked in black coats.", []),
        ("The black-haired woman had a white horse.", []),
        ("Something red and the man.", []),
        ("A black face came in, and his skin was brown.", ["black", "brown"]),
        ("Her face was white, and his red face shone.", []),  # of fear and of anger
    ],
)
def test_colours_of_people(text, colours):
    assert colours_of_people(text) == colours


def test_a_coat_does_not_colour_its_man():
    jacket = Cast.of(["A man in a black jacket."], "", VOCABULARY)
    assert jacket.breaks("The black man ran.", VOCABULARY) == 1
    assert jacket.breaks("The man ran.", VOCABULARY) == jacket.breaks("The black dog ran.", VOCABULARY) == 0
    told = Cast.of(["A man in a black jacket."], "The black man ran.", VOCABULARY)
    assert told.breaks("The black man ran.", VOCABULARY) == 1  # a slip makes the next one no better
    assert Cast.of(["A black man ran."], "", VOCABULARY).breaks("The black man ran.", VOCABULARY) == 0


def test_a_slip_of_the_writer_makes_no_person():
    told = "The man ran, and she ran, and Mary."
    assert Cast.of(["A man."], told, VOCABULARY) == Cast(frozenset({"Mary"}), frozenset({"male"}))
    assert Cast.of(["A man.", "She ran."], told, VOCABULARY).genders == {"male", "female"}  # the user may say so
    assert Cast.of(["A man."], "A woman ran.", VOCABULARY).genders == {"male", "female"}
    assert Cast.of(["A dog."], "She ran, and he ran.", VOCABULARY).genders == {"female"}


def test_what_was_dropped_long_ago_fades():
    passages = ["The dogs ran on the beach.", "A kite flew.", "The boy flew his kite on the beach."]
    subjects = ["dog", "beach", "kite", "boy", "horse"]
    assert carried_words(passages, subjects, 9) == ["kite", "beach", "boy", "dog"]  # 1.5, 1.25, 1, 0.25
    assert CARRY_DECAY == 0.5
    assert carried_words(passages, subjects, 2) == ["kite", "beach"]
    assert carried_words([], subjects, 9) == []


def test_persons():
    assert persons_in("The boy saw his mother, and the boy ran.") == ["boy", "mother"]


@pytest.mark.parametrize(
    "text", ["But the man was gone.", "“And then?” he asked.", "She had seen it.", "They were two."]
)
def test_openings_that_go_on_from_nothing(text):
    assert begins_in_the_middle(text)


@pytest.mark.parametrize("text", ["The man was gone.", "It was a dark night.", "I saw them.", "Andrew ran.", "", "…"])
def test_openings_of_their_own(text):
    assert not begins_in_the_middle(text)
