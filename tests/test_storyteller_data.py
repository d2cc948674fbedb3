"""What the storyteller learns from: prompts as at run time, drawn anew every epoch, answers that are learned."""

import dataclasses
import random

import pytest
from datasets import Dataset

from modeling.errors import DataError
from modeling.story_prompt import GENRES, PAGE_STYLE, SONG
from modeling.text import content_words
from training.storyteller_data import (
    IGNORED,
    StoryBatches,
    StoryExamples,
    StorytellerData,
    Tales,
    collate,
    encode,
    read_stories,
    read_tales,
    story_example,
    tale_example,
)
from training.tiny_photos import write_tiny_photos
from training.tiny_storyteller import byte_pair_tokenizer
from training.tiny_text import write_tiny_text


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_tiny_text(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def data(texts):
    return StorytellerData(str(texts / "tiny-stories"))


@pytest.fixture(scope="module")
def rows(data):
    return read_stories(data, "train")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_pair_tokenizer(["A red circle stood in the garden. Write a story, medium. Photo: Title: Story: Next:"])


def drawn(row, data, times=60, **changes):
    """Prompt texts and answers of many draws."""
    data = dataclasses.replace(data, **changes)
    return [
        (prompt.text(), answer)
        for prompt, answer in (story_example(row, data, random.Random(seed)) for seed in range(times))
    ]


def row_of(rows, style, kind):
    return next(row for row in rows if row.style == style and row.kind == kind)


# -- prompts ----------------------------------------------------------------------------------------------------------
def test_every_row_is_read(rows, data):
    assert len(rows) == 48 and len(read_stories(data, "validation")) == 8
    row = rows[0]
    assert (row.style, row.length, row.title, row.photo) == ("everyday", "short", "The Red Circle", ("tiny", "0"))
    assert row.captions == ("A red circle.", "There is a red circle in the garden.")
    assert {row.kind for row in rows} == {"one", "one_then_on", "one_then_photo", "one_then_sentence"}
    assert {row.style for row in rows} == {"everyday", "romance", "horror", "song", "own"}


def test_a_whole_prompt_and_its_answer(rows, data):
    row = row_of(rows, "romance", "one")
    always = {"people": 1.0, "page": 1.0, "unnamed": 0.0, "perhaps": 1.0, "objects": 0.0}
    shape = row.title.split()[-1].lower()
    found = {text for text, _ in drawn(row, data, **always)}
    assert {text.split("\n")[1] for text in found} == {
        f"Page: Anna loved the {shape}. She walked by the lake and said so."
    }
    for text, answer in drawn(row, data, **always):
        first, page, photo, perhaps, last = text.split("\n")
        assert first == f"Write a romance, {row.length}." and last == "Title:"
        assert photo.removeprefix("Photo: ") in {
            f"{a} {b}".strip() for a in row.captions for b in ("", *row.captions) if a != b
        }
        assert perhaps == f"Perhaps: {row.recalled[0]}"
        assert answer == f" {row.title}\nStory: {row.story}"


def test_what_a_style_is_called(rows, data):
    def kinds(style, **changes):
        return {
            text.split("\n")[0].removeprefix("Write ").rpartition(",")[0]
            for text, _ in drawn(row_of(rows, style, "one_then_on"), data, **changes)
        }

    assert kinds("everyday") == {GENRES["everyday"][0]} and kinds("song") == {SONG}
    assert kinds("horror", unnamed=0.0) == {"a horror story"}
    assert kinds("horror", page=1.0, unnamed=1.0) == {PAGE_STYLE} and kinds("horror", page=0.0, unnamed=1.0) == {
        "a horror story"
    }
    assert kinds("own") == {PAGE_STYLE, "a diary"}
    assert all("\nPage: " in text for text, _ in drawn(row_of(rows, "own", "one"), data, page=0.0))  # else nobody knows
    shown = ["\nPage: " in text for text, _ in drawn(row_of(rows, "horror", "one"), data, page=0.5, times=200)]
    assert 60 < sum(shown) < 140


def test_stories_that_go_on(rows, data):
    for kind in ("one_then_on", "one_then_photo", "one_then_sentence"):
        row = row_of(rows, "everyday", kind)
        for text, answer in drawn(row, data, go_on=1.0, perhaps=1.0):
            lines = dict(line.split(": ", 1) for line in text.split("\n")[1:] if ": " in line)
            assert text.endswith("\nNext:") and answer == f" {row.next}"
            assert text.startswith(f"Write {GENRES['everyday'][0]}, short.\n")  # as long as what is to come
            told = f"{row.story} {row.sentence}" if kind == "one_then_sentence" else row.story
            assert lines["Story"] == told.strip() and "Perhaps" not in lines and "Photo" in lines
            assert ("New photo" in lines) == (kind == "one_then_photo")
            if kind == "one_then_photo":
                assert lines["New photo"] in ("A blue square.", "A blue square. A blue square.")
        assert all(text.endswith("\nTitle:") for text, _ in drawn(row, data, go_on=0.0))
    assert all(text.endswith("\nTitle:") for text, _ in drawn(row_of(rows, "everyday", "one"), data, go_on=1.0))


def test_of_a_long_story_the_end_is_shown(rows, data):
    row = dataclasses.replace(row_of(rows, "everyday", "one_then_on"), story="It rained and rained. " * 100)
    for text, _ in drawn(row, data, times=5, go_on=1.0):
        assert len(text.split("Story: ")[1].split()) == 120 + 1  # and "Next:"


def test_whose_captions_a_prompt_has(rows, data):
    row = dataclasses.replace(rows[0], captions=("A red dog.", "Two dogs run."), seen=("A red dog sits.", "A dog."))

    def shown(row=row, **changes):
        changes = {"page": 0.0, "objects": 0.0, "perhaps": 0.0} | changes
        return {text.split("\n")[1].removeprefix("Photo: ") for text, _ in drawn(row, data, **changes)}

    people = {"A red dog.", "Two dogs run.", "A red dog. Two dogs run.", "Two dogs run. A red dog."}
    assert shown(people=1.0) == people
    assert shown(people=0.0, mixed=0.0) == {"A red dog sits. A dog."}
    mixed = {f"{one} {rest}" for one in row.captions for rest in ("A red dog sits.", "A red dog sits. A dog.")}
    assert shown(people=0.0, mixed=1.0) == mixed
    assert len(shown(people=0.4, mixed=0.2)) == 9
    wrong = dataclasses.replace(row, seen=("A bear eats fish.",))  # alone it would teach to overlook captions
    assert shown(wrong, people=0.0, mixed=0.0) == {f"{one} A bear eats fish." for one in row.captions}
    assert shown(dataclasses.replace(row, captions=()), people=1.0) == {"A red dog sits.", "A red dog sits. A dog."}
    assert shown(dataclasses.replace(row, seen=()), people=0.0, mixed=0.0) == people


def test_objects_are_words_of_captions_and_story(rows, data):
    row = rows[0]
    for text, _ in drawn(row, data, objects=1.0):
        (line,) = (line for line in text.split("\n") if line.startswith("Objects: "))
        words = line.removeprefix("Objects: ").split(", ")
        assert 1 <= len(words) <= 4 and len(set(words)) == len(words)
        assert set(words) <= set(content_words(row.captions)) & set(content_words([row.story]))
    assert not any("Objects" in text for text, _ in drawn(row, data, objects=0.0))


def test_tales_are_told_by_the_things_in_them():
    text = "Once a dog sat by the lake. It saw a bird and a boat, and the dog was glad."
    known = {"dog": 5, "lake": 3, "boat": 4, "glad": 3}
    for seed in range(20):
        prompt, answer = tale_example(text, "The Dog", "a fable", known, random.Random(seed))
        first, objects, last = prompt.text().split("\n")
        assert (first, last) == ("Write a fable, short.", "Title:")
        words = objects.removeprefix("Objects: ").split(", ")
        assert 2 <= len(words) <= 4 and set(words) <= set(known)
        assert answer == f" The Dog\nStory: {text}"
    assert tale_example(text, "", "a fable", known, random.Random(0))[1] == f"\nStory: {text}"


# -- reading ----------------------------------------------------------------------------------------------------------
def test_captions_are_filled_in_by_id(texts, tmp_path):
    """Rows without people's captions find them where their photo's are."""
    photos = write_tiny_photos(tmp_path / "tiny-photos")
    from training.caption_sources import read_split

    known = read_split(str(photos), "all")
    number, captions = known.image_ids[3], list(known.captions[3])
    stories = Dataset.from_parquet(str(texts / "tiny-stories" / "train.parquet")).to_list()[:4]
    for row in stories:
        row |= {"photo_source": "tiny-photos", "photo_id": str(number), "captions": [], "seen": None}
    stories[0] |= {"captions": ["mine."], "captions2": None, "photo2": ["tiny-photos", str(known.image_ids[5])]}
    stories[1] |= {"photo_id": "no such photo", "seen": ["A bear."]}
    stories[2] |= {"photo_source": "elsewhere", "seen": []}
    (tmp_path / "stories").mkdir()
    Dataset.from_list(stories).to_parquet(tmp_path / "stories" / "train.parquet")
    found = read_stories(StorytellerData(str(tmp_path / "stories"), captions=[str(photos)]), "train")

    def plain(texts):
        return [text.lower().strip(" .") for text in texts]

    assert [row.title for row in found] == [stories[i]["title"] for i in (0, 1, 3)]  # one has no caption at all
    assert found[0].captions == ("Mine.",) and found[1].captions == () and found[1].seen == ("A bear.",)
    assert plain(found[2].captions) == plain(captions[:3])
    assert plain(found[0].scene) == plain(known.captions[5])[:3]


def test_stories_without_any_caption_are_one_sentence(texts, tmp_path):
    stories = Dataset.from_parquet(str(texts / "tiny-stories" / "train.parquet")).to_list()
    (tmp_path / "stories").mkdir()
    Dataset.from_list([row | {"captions": [], "seen": []} for row in stories]).to_parquet(
        tmp_path / "stories" / "train.parquet"
    )
    with pytest.raises(DataError, match=r"No story of .* has a caption: name the captions' data set in data\.captions"):
        read_stories(StorytellerData(str(tmp_path / "stories")), "train")


def test_tales_are_chosen_by_their_columns(tmp_path):
    long = "The fox saw the grapes and jumped as high as it could, but it did not get them. " * 2
    rows = [
        {"text": f"{long}\nMoral: it is easy to despise.", "title": " The Fox ", "source": "aesop"},
        {"text": long.upper(), "title": "Loud", "source": "aesop"},
        {"text": "Too short.", "title": "Short", "source": "aesop"},
        {"text": long * 10, "title": "Long", "source": "aesop"},
        {"text": long, "title": None, "source": "other"},
    ]
    (tmp_path / "tales").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "tales" / "train.parquet")
    one_line = " ".join(long.split())
    assert read_tales(Tales(str(tmp_path / "tales"), where={"source": ["aesop"]})) == [(one_line, "The Fox")]
    assert read_tales(Tales(str(tmp_path / "tales"), max_words=100)) == [(one_line, "The Fox"), (one_line, "")]
    assert StorytellerData(tales=[{"dataset": "x", "kind": "a fable"}]).tales == [Tales("x", kind="a fable")]


# -- epochs -----------------------------------------------------------------------------------------------------------
def test_an_epoch_is_a_function_of_seed_and_number(rows, data, tokenizer):
    one, two = (StoryExamples(rows, [], tokenizer, data, seed=1) for _ in range(2))
    epochs = []
    for epoch in (0, 1, 2):
        one.set_epoch(epoch)
        epochs.append(list(one.examples))
    two.set_epoch(2)  # without the others before it
    assert two.examples == epochs[2] and epochs[0] != epochs[1] != epochs[2]
    assert StoryExamples(rows, [], tokenizer, data, seed=2).examples != epochs[0]
    assert len(one) == len(rows) and one[3] == one.examples[3]
    assert one.lengths.tolist() == [len(e["prompt"]) + len(e["answer"]) for e in one.examples]


def test_shares_of_manners_and_tales(rows, data, tokenizer):
    mixed = [dataclasses.replace(row, manner=("plain", "literary", "mixed")[i % 3]) for i, row in enumerate(rows)]
    changed = dataclasses.replace(
        data, shares={"plain": 1.0, "literary": 2.5}, tales=[Tales("x", share=0.5, kind="a fable")]
    )
    tales = [[(f"A circle number {i} stood in the garden and was glad. " * 3, "T") for i in range(40)]]
    examples = StoryExamples(mixed, tales, tokenizer, changed)
    prompts = [tokenizer.decode(one["prompt"]) for one in examples.examples]
    told = sum(prompt.startswith("Write a fable") for prompt in prompts)
    assert 10 <= told <= 30 and 16 + 2 * 16 <= len(prompts) - told <= 16 + 3 * 16
    none = dataclasses.replace(data, shares={})
    assert len(StoryExamples(rows, [], tokenizer, none)) == 0


def test_an_example_that_is_too_long_is_left_out(rows, data, tokenizer):
    whole = StoryExamples(rows, [], tokenizer, data)
    limit = int(sorted(whole.lengths)[len(whole) // 2])
    some = StoryExamples(rows, [], tokenizer, dataclasses.replace(data, max_tokens=limit))
    assert some.examples == [one for one, length in zip(whole.examples, whole.lengths, strict=True) if length <= limit]
    assert 0 < len(some) < len(whole)


def test_answers_end_with_the_end_and_nothing_is_lost(rows, data, tokenizer):
    pairs = [story_example(row, data, random.Random(i)) for i, row in enumerate(rows)]
    for (prompt, answer), one in zip(pairs, encode(pairs, tokenizer, 10**6), strict=True):
        assert tokenizer.decode(one["prompt"]) == prompt.text()
        assert one["answer"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(one["answer"][:-1]) == answer
    assert encode([], tokenizer, 10) == []


def test_only_answers_are_learned():
    batch = collate([{"prompt": [5, 6, 7], "answer": [8, 9]}, {"prompt": [5], "answer": [4]}], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 4, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [8, 9], [IGNORED, 4] + [IGNORED] * 3]


def test_batches_are_of_the_epoch_and_hold_all_of_it(rows, data, tokenizer):
    examples = StoryExamples(rows, [], tokenizer, data, seed=1)
    batches = StoryBatches(examples, 2000, seed=1)
    seen = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        found = list(batches)
        assert sorted(i for batch in found for i in batch) == list(range(len(examples)))
        for batch in found:
            assert len(batch) == 1 or max(examples.lengths[i] for i in batch) * len(batch) <= 2000
        seen.append([[examples[i] for i in batch] for batch in found])
    assert seen[0] != seen[1]
    again = StoryBatches(StoryExamples(rows, [], tokenizer, data, seed=1), 2000, seed=1)
    again.set_epoch(1)  # as a resumed run does
    assert [[again.examples[i] for i in batch] for batch in again] == seen[1]
