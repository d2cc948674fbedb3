"""The captioner's captions of the photos that stories are about, as columns of their data set."""

import json

import pytest
from datasets import load_dataset

from modeling import StoryPipeline
from modeling.errors import DataError
from tests.storytelling import write_pipeline
from training import caption_sources
from training.caption_stories import main, run
from training.json_lines import JsonLines
from training.storyteller_data import StorytellerData, read_stories
from training.tiny_photos import COLOURS, PHRASES, SHAPES, write_tiny_photos
from training.tiny_text import write_tiny_text

NAMES = [f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    made = StoryPipeline.from_pretrained(write_pipeline(tmp_path_factory.mktemp("pipeline")))
    made.use_sentences(["A dog runs on the beach.", "A red circle.", "A boy sits in the snow.", "A black horse."])
    return made


@pytest.fixture
def data(tmp_path, monkeypatch):
    """`tiny-photos`, and `tiny-stories` about them: about one that is not there, too."""
    monkeypatch.setenv("PICTALE_DATA", str(tmp_path))
    monkeypatch.setattr(caption_sources, "_said", set())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_tiny_photos(tmp_path / "tiny-photos")
    write_tiny_text(tmp_path)
    for split, rows in load_dataset(str(tmp_path / "tiny-stories")).items():
        rows = rows.remove_columns(["seen", "recalled", "seen2"]).map(
            lambda row: {
                "photo_source": "tiny-photos",
                "photo_id": (NAMES + ["lost"])[int(row["photo_id"]) % 9],
                "photo2": row["photo2"] and ["tiny-photos", "red-circle"],
            }
        )
        rows.to_parquet(tmp_path / "tiny-stories" / f"{split}.parquet")
    return tmp_path


def captioned(data, pipe, **options):
    output = data / "out"
    run("tiny-stories", ["tiny-photos"], output, pipe, **options)
    return load_dataset(str(output), cache_dir=str(data / "other-cache"))


def test_captions_are_those_of_the_page(data, pipe, capsys):
    rows = captioned(data, pipe)["train"]
    assert len(rows) == 48 and rows["story"][0] and rows["manner"][0] == "plain"
    photo = load_dataset(str(data / "tiny-photos"))["train"][NAMES.index("red-circle")]["image"]
    captions = pipe.see(photo)[0]
    row = next(row for row in rows if row["photo_id"] == "red-circle")
    assert row["seen"] == [c.text for c in captions if not c.remembered] and len(row["seen"]) == 3
    remembered = [c.text for c in captions if c.remembered]
    assert "A red circle." in remembered  # which is a caption of this photo
    assert row["recalled"] == [text for text in remembered if text != "A red circle."]
    other = next(row for row in rows if row["photo_id"] == "blue-square")
    assert "A red circle." in other["recalled"]
    assert {len(row["seen2"] or ()) for row in rows if row["photo2"]} == {3}
    assert all(row["seen2"] is None for row in rows if not row["photo2"])
    lost = [row for row in rows if row["photo_id"] == "lost"]
    assert lost and all(row["seen"] == [] and row["recalled"] == [] for row in lost)
    assert "1 of 9 photos are in none of the data sets and are skipped (tiny-photos/lost)" in capsys.readouterr().err


def test_the_result_is_what_the_storyteller_learns_from(data, pipe):
    captioned(data, pipe)
    rows = read_stories(StorytellerData(stories=str(data / "out")), "train")
    assert rows[0].photo == ("tiny-photos", "red-circle") and len(rows[0].seen) == 3


def test_it_goes_on_where_it_was(data, pipe, monkeypatch):
    looked = []

    def see(images):
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(len(images))
        return type(pipe).see(pipe, images)

    monkeypatch.setattr(pipe, "see", see)
    with pytest.raises(KeyboardInterrupt):
        captioned(data, pipe, batch_size=3)
    assert not (data / "out").exists() and looked == [3, 3]
    file = data / "out.captions.jsonl"
    with file.open("ab") as lines:
        lines.write(b'{"source": "tiny-photos", "id": "yel')  # it was killed while it wrote
    looked[:] = [0]
    whole = captioned(data, pipe, batch_size=3)
    assert looked == [0, 2]
    monkeypatch.undo()
    monkeypatch.setenv("PICTALE_DATA", str(data))
    file.unlink()
    again = captioned(data, pipe)
    assert again["train"].to_list() == whole["train"].to_list()


def test_another_captioner_looks_again(data, pipe):
    captioned(data, pipe)
    lines = (data / "out.captions.jsonl").read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    head["about"]["captioner"] = "another"
    (data / "out.captions.jsonl").write_text(json.dumps(head) + "\n" + "".join(lines[1:]).replace("A ", "B "))
    assert not any(text.startswith("B ") for row in captioned(data, pipe)["train"] for text in row["seen"])


def test_what_may_not_be_published_is_left_out(data, pipe):
    (data / "tiny-photos").rename(data / "flickr8k")
    for file in (data / "tiny-stories").glob("*.parquet"):
        rows = load_dataset("parquet", data_files=str(file), cache_dir=str(data / "third-cache"))["train"]
        rows = rows.map(
            lambda row: {"photo_source": "flickr8k", "photo2": row["photo2"] and ["flickr8k", "red-circle"]}
        )
        rows.to_parquet(file)
    run("tiny-stories", ["flickr8k"], data / "out", pipe, publish=True)
    rows = load_dataset(str(data / "out"), cache_dir=str(data / "other-cache"))["train"]
    assert set(map(str, rows["captions"])) == set(map(str, rows["captions2"])) == {"None"}
    assert any(rows["seen"])
    known = read_stories(StorytellerData(stories=str(data / "out"), captions=["flickr8k"]), "train")
    assert known[0].captions[0] == PHRASES[0].format(c="red", s="circle").capitalize() + "."


def test_broken_photos_are_named(data, pipe, capsys):
    from datasets import Image

    photos = load_dataset(str(data / "tiny-photos"))["train"].cast_column("image", Image(decode=False))
    photos = photos.map(
        lambda row: {"image": {"bytes": b"no photo", "path": None}} if row["image_id"] == "red-square" else row
    )
    for file in (data / "tiny-photos").glob("*.parquet"):
        file.unlink()
    photos.to_parquet(data / "tiny-photos" / "train.parquet")
    rows = captioned(data, pipe)["train"]
    assert all(bool(row["seen"]) == (row["photo_id"] not in ("red-square", "lost")) for row in rows)
    assert "tiny-photos: 1 of 8 photos cannot be read and are skipped (red-square)" in capsys.readouterr().err


def test_other_files_of_the_folder_stay_and_foreign_folders_are_refused(data, pipe):
    captioned(data, pipe)
    (data / "out" / "README.md").write_text("about them")
    captioned(data, pipe)
    assert (data / "out" / "README.md").read_text() == "about them"
    (data / "papers").mkdir()
    (data / "papers" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="holds something other than stories"):
        run("tiny-stories", ["tiny-photos"], data / "papers", pipe)
    assert (data / "papers" / "letter.txt").exists()


def test_mistakes_are_one_sentence(data, pipe, monkeypatch, capsys):
    monkeypatch.setattr(StoryPipeline, "from_pretrained", lambda *_: pipe)
    write_tiny_photos(data / "other-photos")
    assert main(["tiny-stories", "--photos", "other-photos", "--output", str(data / "out")]) == 1
    assert "give the data sets tiny-photos." in capsys.readouterr().err
    assert main(["tiny-photos", "--photos", "tiny-photos", "--output", str(data / "out")]) == 1
    assert "have no column photo_id or photo_source" in capsys.readouterr().err
    assert not (data / "out").exists()


def test_records_of_something_else_are_begun_anew(tmp_path):
    file = JsonLines(tmp_path / "deep" / "file.jsonl", {"model": "a"})
    file.append([{"x": 1}, {"x": "é\u2028"}])
    assert JsonLines(file.path, {"model": "a"}).records == [{"x": 1}, {"x": "é\u2028"}]
    assert JsonLines(file.path, {"model": "b"}).records == []
    assert JsonLines(file.path, {"model": "a"}).records == []
