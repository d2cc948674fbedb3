"""Blind reading sheets: what stands on them, that nothing there tells whose a story is, and what readers' marks say."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling import DataError
from tests.tiny import save_tiny_pipeline, tiny_pipeline
from training import reading_sheet
from training.evaluate_stories import main, open_tellers
from training.reading_sheet import COLUMNS, Entry, people_entries, read_back, reading_table, told_entries, write_sheet
from training.story_systems import Library, choose_photos
from training.tiny_photos import write_tiny_photos

STYLES = ["romance", "horror"]


def entry(system: str, photo: str, story: str, style: str = "horror") -> Entry:
    return Entry(
        system, photo, Image.new("RGB", (8, 8), "red"), [f"A {photo}.", "It.", "Is.", "Four."], style, story, 7
    )


def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def mark(path, marks, to, delimiter=",", leave=()):
    """A copy of a sheet with `marks(row)` -> sense, about, style."""
    rows = [row for row in rows_of(path) if row["n"] not in leave]
    for row in rows:
        row.update(zip(("sense", "about", "style_score"), marks(row), strict=True))
    with open(to, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return to


@pytest.fixture
def written(tmp_path):
    """A sheet of two systems, three photos each: the stories of b are longer."""
    entries = [
        entry(s, f"p{i}", f"Story {i}, “quoted”;\nof {s * 9 if s == 'b' else s}.") for s in "ab" for i in range(3)
    ]
    return tmp_path / "sheet.csv", write_sheet(tmp_path / "sheet.csv", entries, seed=1)


def test_a_sheet_says_nothing_of_who_tells(written):
    sheet, key = written
    rows, owners = rows_of(sheet), rows_of(key)
    assert list(rows[0]) == list(COLUMNS) and [row["n"] for row in rows] == [str(n) for n in range(1, 7)]
    assert [owner["system"] for owner in owners] != sorted(owner["system"] for owner in owners)  # shuffled
    for row, owner in zip(rows, owners, strict=True):
        assert row["story"].startswith(f"Story {owner['photo_id'][1]}, “quoted”;\nof {owner['system']}")
        assert row["photo_says"] == f"A {owner['photo_id']}. | It. | Is." and owner["seed"] == "7"
        assert row["sense"] == row["about"] == row["style_score"] == row["note"] == ""
        with Image.open(sheet.parent / row["photo"]) as image:
            assert image.format == "JPEG"
    assert len(set(row["photo"] for row in rows)) == 3 == len(list((sheet.parent / "sheet").iterdir()))
    photos = {owner["photo_id"]: row["photo"] for row, owner in zip(rows, owners, strict=True)}
    assert all(photos[o["photo_id"]] == r["photo"] for r, o in zip(rows, owners, strict=True))
    with pytest.raises(DataError, match="is there already, and may have marks"):
        write_sheet(sheet, [entry("a", "p", "Text.")])
    with pytest.raises(DataError, match=r"Call the reading sheet .*sheet\.csv"):
        write_sheet(sheet.parent / "sheet", [])


def test_the_same_seed_shuffles_the_same(tmp_path):
    entries = [entry("a", f"p{i}", f"Story {i}.") for i in range(20)]
    stories = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        write_sheet(tmp_path / f"{name}.csv", entries, seed)
        stories.append([row["story"] for row in rows_of(tmp_path / f"{name}.csv")])
    assert stories[0] == stories[1] != stories[2] and sorted(stories[0]) == sorted(stories[2])


def test_marks_become_means_by_system(written, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (training/requirements.txt)")
    sheet, key = written
    one = mark(
        sheet,
        lambda row: (3, 2, 0) if "bbb" in row["story"] else (1, row["n"] == "1" and 3 or 0, 0),
        tmp_path / "anna.csv",
    )
    other = mark(sheet, lambda row: ("2.0", 2, 0) if "bbb" in row["story"] else (0, 0, 0), tmp_path / "ben.csv", ";")
    report = read_back([one, other], key, draws=50)
    assert report["stories"] == 6 and set(report["reading"]) == {"a", "b"} and not report["not_measured"]
    a, b = report["reading"]["a"], report["reading"]["b"]
    assert a["n"] == b["n"] == 3 and b["sense"] == {"value": 2.5, "low": 2.5, "high": 2.5}
    assert a["sense"]["value"] == 0.5 and b["about"]["value"] == 2.0 and a["style_score"]["value"] == 0
    (pair,) = report["agreement"]
    assert pair["readers"] == ["anna", "ben"] and pair["sense"]["within_one"] == 1
    # marks (3 2) and (1 0) three times: squares apart 6, by chance (9 + 1 + 1 + 1) / 4 * 6 = 18
    assert pair["sense"]["kappa"] == pytest.approx(1 - 6 / 18, abs=1e-4)
    assert pair["style_score"]["kappa"] is None  # nobody said anything but 0
    table = reading_table(report)
    assert "| b | 3 | 2.50 (2.50 to 2.50) | 2.00" in table and "anna and ben" in table and "style - (100%)" in table
    alone = read_back([other], key, draws=5)
    assert alone["agreement"] == [] and alone["reading"]["b"]["sense"]["value"] == 2


def test_intervals_are_over_photos(tmp_path):
    entries = [entry("a", f"p{i}", f"Story {i} {k}.") for i in range(4) for k in range(2)]
    key = write_sheet(tmp_path / "sheet.csv", entries)
    marked = mark(tmp_path / "sheet.csv", lambda row: (3 if "Story 0" in row["story"] else 0, 1, 1), tmp_path / "m.csv")
    figure = read_back([marked], key, draws=400)["reading"]["a"]["sense"]
    assert figure["value"] == 0.75 and figure["low"] == 0 and figure["high"] == 2.25  # three of four times photo 0


def test_kappa_is_left_out_without_scikit_learn(written, tmp_path, monkeypatch):
    def missing(one, other):
        raise ImportError

    monkeypatch.setattr(reading_sheet, "_kappa", missing)
    sheet, key = written
    marked = mark(sheet, lambda row: (1, 1, 1), tmp_path / "m.csv")
    report = read_back([marked, marked], key, draws=5)
    assert "scikit-learn" in report["not_measured"]["kappa of two readers"] and "sense - (100%)" in reading_table(
        report
    )


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text.replace("style_score", "stil"), "has no column style_score"),
        (lambda text: text.replace(",1,2,3,", ",1,,3,", 1), "number 1 has no mark for about"),
        (lambda text: text.replace(",1,2,3,", ",1,4,3,", 1), "'4' for about of story number 1 is no mark"),
        (lambda text: text.replace(",1,2,3,", ",1,2.5,3,", 1), "'2.5' for about"),
        (lambda text: text.replace("\n6,", "\n9,"), "knows no story number '9'"),
        (lambda text: text.replace("\n6,", "\n5,"), "number 5 is there twice"),
        (lambda text: text.replace("Story 0", "Story 7"), "is not the one of the key"),
        (lambda text: text.split("\n6,")[0] + "\n", "1 of 6 stories are missing, number 6"),
        (lambda text: "", "has no column n"),
    ],
)
def test_a_bad_sheet_is_one_sentence(written, tmp_path, damage, message):
    sheet, key = written
    marked = mark(sheet, lambda row: (1, 2, 3), tmp_path / "m.csv")
    assert read_back([marked], key, draws=2)["stories"] == 6
    text = marked.read_bytes().decode().replace("\r\n", "\n")
    assert (changed := damage(text)) != text
    marked.write_text(changed)
    with pytest.raises(DataError, match=message):
        read_back([marked], key)
    with pytest.raises(DataError, match="cannot be read"):
        read_back([tmp_path / "none.csv"], key)


def test_what_spreadsheets_do_to_a_sheet_does_not_matter(written, tmp_path):
    sheet, key = written
    marked = mark(sheet, lambda row: (" 1 ", "2.0", 3), tmp_path / "m.csv")
    text = marked.read_bytes().decode()
    marked.write_bytes(("\ufeff" + text + "," * 8 + "\r\n").encode())  # a mark of UTF-8, and an empty row
    assert read_back([marked], key, draws=2)["reading"]["a"]["about"]["value"] == 2


# -- what stands on a sheet --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")


def library() -> Library:
    texts = [f"The {style} book {i} said it." for style in STYLES for i in range(5)]
    return Library(texts, [style for style in STYLES for _ in range(5)], list(range(10)))


def test_all_systems_tell_of_the_same_photos_in_turn(data):
    pipe, photos = tiny_pipeline(), choose_photos(str(data), "train", 3)
    tellers = open_tellers(pipe, photos, library(), seed=5)
    entries = told_entries(tellers, photos, {"pictale": {}, "one": {"candidates": 1}, "real": None}, 6)
    by_system = {name: [e for e in entries if e.system == name] for name in ("pictale", "one", "real")}
    jobs = [[(e.photo_id, e.style) for e in own] for own in by_system.values()]
    assert jobs[0] == jobs[1] == jobs[2] and len(set(jobs[0])) == 6  # three photos, each in both styles
    assert [style for _, style in jobs[0]].count("horror") == 3
    first = by_system["one"][1]
    seen = pipe.caption(photos.images)[1]
    view = pipe.views(photos.images[1])[0]
    assert first.seed == 6 and first.story == pipe.tell(seen, first.style, 6, view, candidates=1).story
    assert all(e.seed is None and e.style in e.story for e in by_system["real"])
    people = people_entries([f"Sam -- no. {i}" for i in range(9)], photos, tellers.styles, 4, seed=1)
    assert [(e.photo_id, e.style) for e in people] == jobs[0][:4] and len({e.story for e in people}) == 4
    assert len({e.story for e in by_system["real"]}) == 6
    assert people[0].story.startswith("Sam—no. ") and len(people_entries(["One."], photos, STYLES, 4)) == 1


def written_stories(folder, names=("tiny-photos",)):
    rows = [
        {
            "photo_source": names[i % len(names)],
            "photo_id": f"{colour}-circle",
            "style": style,
            "story": f"{style} {i}.",
        }
        for i, (colour, style) in enumerate(
            [("red", "horror"), ("blue", "horror"), ("green", "romance"), ("red", "song")]
        )
    ]
    rows.append({"photo_source": "elsewhere", "photo_id": "red-circle", "style": "horror", "story": "Not this."})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation-00000-of-00001.parquet")
    return str(folder)


def test_written_stories_come_with_their_own_photos(data, tmp_path):
    stories = written_stories(tmp_path / "written")
    entries = reading_sheet.written_entries(stories, [str(data)], STYLES, 5)
    assert sorted((e.style, e.photo_id, e.story) for e in entries) == [
        ("horror", "blue-circle", "horror 1."),
        ("horror", "red-circle", "horror 0."),
        ("romance", "green-circle", "romance 2."),
    ]
    photo = next(e for e in entries if e.photo_id == "blue-circle")
    assert photo.says[0] == "a blue circle" and np.argmax(np.asarray(photo.image.convert("RGB"))[32, 32]) == 2
    assert [e.style for e in reading_sheet.written_entries(stories, [str(data)], STYLES, 2)] == STYLES  # even
    with pytest.raises(DataError, match="No photo of the validation stories"):
        reading_sheet.written_entries(written_stories(tmp_path / "other", ("b",)), [str(data)], STYLES, 5)


def test_the_command_writes_a_sheet_and_reads_it_back(data, tmp_path, capsys):
    books = tmp_path / "books"
    books.mkdir()
    text = "\n\n".join(f"The {'old ' * 70} house {i}." for i in range(4))
    rows = [{"title": f"{g} {i}", "author": "", "genre": g, "text": text} for g in STYLES for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), books / "train-00000-of-00001.parquet")
    (tmp_path / "people").mkdir()
    rows = [{"sentences": [f"I had {i} cats.", "They ran."]} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "people" / "train-00000-of-00001.parquet")
    settings = ["--dataset", str(data), "--split", "train", "--books", str(books)]
    settings += ["--model", str(save_tiny_pipeline(tmp_path / "models")), "--system", "one:candidates=1"]
    settings += ["--stories-each", "3", "--reading-sheet", str(tmp_path / "sheet.csv")]
    more = ["--written-stories", written_stories(tmp_path / "written"), "--written-photos", str(data)]
    assert main([*settings, *more, "--people", str(tmp_path / "people")]) == 0
    assert "15 stories to read" in capsys.readouterr().out
    owners = rows_of(tmp_path / "sheet.key.csv")
    counts = {
        name: sum(o["system"] == name for o in owners) for name in ("pictale", "real", "one", "written", "people")
    }
    assert set(counts.values()) == {3}
    assert main([*settings]) == 2 and "may have marks" in capsys.readouterr().err
    marked = mark(tmp_path / "sheet.csv", lambda row: (2, 1, 3), tmp_path / "m.csv")
    back = ["--read-back", str(marked), "--key", str(tmp_path / "sheet.key.csv")]
    assert main(back) == 0 and "| written | 3 | 2.00 (2.00 to 2.00) |" in capsys.readouterr().out
    assert main([*back, "--json"]) == 0 and '"style_score": {"value": 3.0' in capsys.readouterr().out
    assert main(["--read-back", str(tmp_path / "sheet.csv"), *back[2:]]) == 2
    assert "has no mark for sense" in capsys.readouterr().err
