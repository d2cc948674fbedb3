"""Text in and out: tokens, sentences, quotation marks, cleaning."""

import pytest

from modeling.text import clean_text, content_words, directed_quotes, lyric_lines, split_sentences
from modeling.tokenization import BOS_ID, EOS_ID, UNK_ID, build_word_tokenizer
from modeling.words import split_words

SENTENCES = [
    "Don't go, John's mother-in-law said -- and left...",
    "“Who's there?” he asked; nobody answered (3 times).",
    "L’été, c’est l'été! Ünïcode №5 works_too.",
    "",
]


@pytest.mark.parametrize("lowercase", [True, False])
def test_split_words_is_what_the_tokenizer_does(lowercase):
    tokenizer = build_word_tokenizer(SENTENCES, lowercase=lowercase)
    for sentence in SENTENCES:
        ids = tokenizer(sentence).input_ids
        assert ids[0] == BOS_ID and ids[-1] == EOS_ID
        assert tokenizer.convert_ids_to_tokens(ids[1:-1]) == split_words(sentence, lowercase)


def test_vocabulary_is_sorted_by_frequency_and_cut():
    tokenizer = build_word_tokenizer(["a a a b b c"], vocab_size=6)
    assert tokenizer.convert_ids_to_tokens(range(6)) == ["<pad>", "<s>", "</s>", "<unk>", "a", "b"]
    assert tokenizer("c").input_ids[1] == UNK_ID


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_word_tokenizer(SENTENCES)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for sentence in SENTENCES:
        assert again(sentence).input_ids == tokenizer(sentence).input_ids


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("the dog ran . it was happy", "The dog ran. It was happy."),
        ("“ come here , ” said she ; “ and sit", "“Come here,” said she; “and sit.”"),
        ("a mother - in - law -- old", "A mother-in-law—old."),
        ("he did n't know", "He did n't know."),
        ("yes , ma ' am , at five o ' clock , said d ' Artagnan", "Yes, ma'am, at five o'clock, said d'Artagnan."),
        ("don't go , John 's dog ! ...", "Don't go, John's dog!..."),
        ("the the dog dog barked", "The dog barked."),
        ("he had had enough", "He had had enough."),
        ("and i saw it ,", "And I saw it."),
        (", . well", "Well."),
        ("he said . ” she left", "He said. She left."),
        ("down the road — ” he said", "Down the road—he said."),
        ("<unk> saw <unk> dog", "Saw dog."),
        ("said he , ' yet , he went ' home '", "Said he, yet, he went home."),
        ("", ""),
        ("  . ", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    "text", ["He ran. “Stop!” he cried.", "A mother-in-law—old and grey—sat down.", "It's John's."]
)
def test_clean_text_leaves_clean_text_alone(text):
    assert clean_text(text) == text
    assert clean_text(" ".join(split_words(text))) == text


def test_directed_quotes():
    assert directed_quotes('"Come," he said, "and see."') == "“Come,” he said, “and see.”"
    assert directed_quotes("'Come,' he said. 'It's John's.'") == "“Come,” he said. “It's John's.”"
    assert directed_quotes("It's John's.") == "It's John's."


def test_split_sentences_keeps_every_word():
    text = "Mr. Smith came. “Where are you?” he asked. Nobody answered!"
    sentences = split_sentences(text)
    assert " ".join(sentences) == text
    assert len(sentences) == 3
    assert split_sentences("  ") == []


def test_content_words_rank_what_captions_share():
    words = content_words(["A dog runs on the beach.", "A brown dog with a stick.", "Two dogs play on a beach."], 4)
    assert words[:2] == ["dog", "beach"]
    assert "the" not in words and len(words) == 4


def test_a_song_is_broken_at_its_own_lines_where_it_has_any():
    song = "the sea is wide, / the boats are gone. Gone! / And/or not /"
    assert lyric_lines(song) == "The sea is wide,\nThe boats are gone. Gone!\nAnd/or not"
    assert lyric_lines("/ One / / two /") == "One\nTwo"
    assert lyric_lines("and/or, yes") == "And/or\nYes"  # no line's end
    assert lyric_lines("") == lyric_lines(" / ") == ""


def test_lyric_lines_and_empty_pieces():
    assert lyric_lines("She came, she saw, and left. Nobody knew.") == "She came\nShe saw\nAnd left.\nNobody knew."
    assert lyric_lines("Well,, yes.") == "Well\nYes."
