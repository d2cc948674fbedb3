"""Every format of photographs with captions reads the same; what is missing or broken is named and left out."""

import csv
import io
import json
import random

import pytest

from modeling.errors import DataError, RecipeError
from modeling.images import load_image
from training import caption_sources
from training.caption_records import MAX_FOLDERS, locate
from training.caption_sources import CaptionSource, detect_format, held_out, read_split
from training.tiny_photos import COLOURS, draw

NAMES = {
    "train": ["red.png", "green.png", "blue.png"],
    "validation": ["yellow.png"],
}
CAPTIONS = {f"{colour}.png": [f"a {colour} circle", f'the "round", {colour} thing'] for colour in COLOURS}
ALL_NAMES = [name for names in NAMES.values() for name in names]


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(caption_sources, "_said", set())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write_photos(folder, names=ALL_NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(draw(name.split(".")[0], "circle"))
    return folder


def write_csv(file, rows, header=("file_name", "caption"), delimiter=","):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([header, *rows] if header else rows)
    return file


def caption_rows(names=ALL_NAMES):
    return [(name, text) for name in names for text in CAPTIONS[name]]


# -- one writer a format: the same photographs, captions and (where the format knows any) splits ---------------------
def as_csv(folder):
    write_photos(folder)
    write_csv(folder / "captions.csv", caption_rows())


def as_csv_beside_a_folder(folder):
    write_photos(folder / "my photos")
    write_csv(folder / "list.csv", [(f"my photos/{n}", t) for n, t in caption_rows()], header=("File", "Text"))


def as_semicolons_with_mark(folder):
    write_photos(folder)
    file = write_csv(folder / "captions.csv", caption_rows(), ("image", "caption"), ";")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as spreadsheets save it


def as_tsv_without_header(folder):
    write_photos(folder)
    write_csv(folder / "captions.tsv", caption_rows(), None, "\t")


def as_flickr30k_pipes(folder):
    write_photos(folder / "flickr30k_images")
    rows = [f"{n}| {i}| {t}" for n, texts in CAPTIONS.items() for i, t in enumerate(texts)]
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))


def as_kaggle_text(folder):
    write_photos(folder / "Images")
    write_csv(folder / "captions.txt", caption_rows(), ("image", "caption"))


def as_wide_csv(folder):
    write_photos(folder)
    rows = [(n, *CAPTIONS[n], "") for n in ALL_NAMES]
    write_csv(folder / "captions.csv", rows, ("filename", "caption_0", "caption_1", "caption_2"))


def as_json_lines(folder):
    write_photos(folder)
    lines = [json.dumps({"file": n, "captions": CAPTIONS[n]}) for n in ALL_NAMES]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def as_imagefolder(folder):
    write_photos(folder)
    write_csv(folder / "metadata.csv", caption_rows(), ("file_name", "text"))


def as_csv_with_splits(folder):
    write_photos(folder)
    rows = [(n, t, s) for s, names in NAMES.items() for n, t in caption_rows(names)]
    write_csv(folder / "captions.csv", rows, ("file", "caption", "split"))


def as_csv_a_split(folder):
    write_photos(folder / "photos")
    write_csv(folder / "train.csv", caption_rows(NAMES["train"]))
    write_csv(folder / "val.csv", caption_rows(NAMES["validation"]))


def as_imagefolder_with_splits(folder):
    for split, names in NAMES.items():
        write_photos(folder / split, names)
        lines = [json.dumps({"file_name": n, "captions": CAPTIONS[n]}) for n in names]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))


def as_coco(folder):
    (folder / "annotations").mkdir(parents=True)
    for split, names in (("train2017", NAMES["train"]), ("val2017", NAMES["validation"])):
        write_photos(folder / split, names)
        images = [{"id": 7 + i, "file_name": n, "license": 1} for i, n in enumerate(names)]
        notes = [{"id": 1, "image_id": im["id"], "caption": t} for im in images for t in CAPTIONS[im["file_name"]]]
        random.Random(0).shuffle(notes)
        notes.sort(key=lambda note: CAPTIONS[names[note["image_id"] - 7]].index(note["caption"]))
        content = {"info": {}, "images": images, "annotations": notes}
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def as_karpathy(folder, filepath=None):
    write_photos(folder / (filepath or "images"))
    rows = [
        {"filename": n, "split": s, "sentences": [{"raw": t, "tokens": t.split()} for t in CAPTIONS[n]]}
        | ({"filepath": filepath} if filepath else {})
        for s, n in zip(("train", "restval", "train", "val"), ALL_NAMES, strict=True)
    ]
    (folder / "dataset_mine.json").write_text(json.dumps({"images": rows, "dataset": "mine"}))


def as_karpathy_coco(folder):
    as_karpathy(folder, "val2014")


def as_flickr8k(folder):
    write_photos(folder / "Flicker8k_Dataset")
    lines = [f"{n}#{i}\t{t}" for n, texts in CAPTIONS.items() for i, t in enumerate(texts)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines))
    (folder / "Flickr_8k.trainImages.txt").write_text("\n".join(NAMES["train"]) + "\n")
    (folder / "Flickr_8k.devImages.txt").write_text("\n".join(NAMES["validation"]))


def dataset_of(names, image="image", **columns):
    from datasets import Dataset, Image

    rows = {image: [{"bytes": draw(n.split(".")[0], "circle"), "path": n} for n in names], **columns}
    return Dataset.from_dict(rows).cast_column(image, Image())


def as_parquet(folder):
    folder.mkdir()
    for split, names in NAMES.items():
        dataset = dataset_of(names, image_id=names, captions=[CAPTIONS[n] for n in names])
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def as_parquet_of_nlphuji(folder):
    """Everything in one split, a column says which it is; other names of columns."""
    folder.mkdir()
    splits = ["train"] * 3 + ["val"]
    dataset = dataset_of(ALL_NAMES, caption=[CAPTIONS[n] for n in ALL_NAMES], split=splits, filename=ALL_NAMES)
    dataset.to_parquet(folder / "test.parquet")


def as_parquet_of_coco_on_the_hub(folder):
    """A row a caption, each caption a struct."""
    folder.mkdir()
    for split, names in NAMES.items():
        rows = caption_rows(names)
        texts = [{"raw": t, "imgid": 1} for _, t in rows]
        dataset = dataset_of([n for n, _ in rows], "jpg", sentences=texts, filename=[n for n, _ in rows])
        dataset.to_parquet(folder / f"{split}.parquet")


def as_saved_dataset(folder):
    from datasets import DatasetDict

    parts = {
        s: dataset_of(n, id=n, caption_1=[CAPTIONS[x][0] for x in n], caption_2=[CAPTIONS[x][1] for x in n])
        for s, n in NAMES.items()
    }
    DatasetDict(parts).save_to_disk(folder)


WITHOUT_SPLITS = [
    as_csv,
    as_csv_beside_a_folder,
    as_semicolons_with_mark,
    as_tsv_without_header,
    as_flickr30k_pipes,
    as_kaggle_text,
    as_wide_csv,
    as_json_lines,
    as_imagefolder,
]
WITH_SPLITS = [
    as_csv_with_splits,
    as_csv_a_split,
    as_imagefolder_with_splits,
    as_coco,
    as_karpathy,
    as_karpathy_coco,
    as_flickr8k,
    as_parquet,
    as_parquet_of_nlphuji,
    as_parquet_of_coco_on_the_hub,
    as_saved_dataset,
]


def content(split):
    """{colour of the photograph: its captions}, from the pixels and not from the names."""
    colours = {colour: name for name, colour in COLOURS.items()}
    return {colours[load_image(split.images[row]).getpixel((32, 32))]: split.captions[row] for row in range(len(split))}


def expected(names):
    return {name.split(".")[0]: CAPTIONS[name] for name in names}


@pytest.mark.parametrize("write", WITHOUT_SPLITS)
def test_formats_without_splits(tmp_path, write):
    write(tmp_path / "set")
    assert content(read_split(str(tmp_path / "set"), "train")) == expected(ALL_NAMES)
    with pytest.raises(DataError, match="has no split 'validation', only 'train'.*validation_share"):
        read_split(str(tmp_path / "set"), "validation")
    parts = [content(read_split({"path": str(tmp_path / "set"), "validation_share": 0.3}, s)) for s in NAMES]
    assert all(parts) and parts[0] | parts[1] == expected(ALL_NAMES) and not parts[0].keys() & parts[1].keys()


@pytest.mark.parametrize("write", WITH_SPLITS)
def test_formats_with_splits(tmp_path, write):
    write(tmp_path / "set")
    for split, names in NAMES.items():
        read = read_split(str(tmp_path / "set"), split)
        assert content(read) == expected(names)
        assert len(set(read.image_ids)) == len(names)
    assert content(read_split(str(tmp_path / "set"), "val")) == expected(NAMES["validation"])
    assert content(read_split(str(tmp_path / "set"), "all")) == expected(ALL_NAMES)
    with pytest.raises(DataError, match="has no split 'winter', only 'train', 'validation'"):
        read_split(str(tmp_path / "set"), "winter")
    assert len(read_split(str(tmp_path / "set"), "train", limit=2)) == 2


def test_a_file_with_its_photographs_elsewhere(tmp_path, monkeypatch):
    as_coco(tmp_path / "coco")
    (tmp_path / "coco" / "train2017").rename(tmp_path / "elsewhere")
    file = str(tmp_path / "coco" / "annotations" / "captions_train2017.json")
    with pytest.raises(DataError, match='None of the 3 photographs .* say where they are with "images"'):
        read_split(file, "train")
    assert content(read_split({"path": file, "images": str(tmp_path / "elsewhere")}, "train")) == expected(
        NAMES["train"]
    )
    monkeypatch.setenv("PICTALE_DATA", str(tmp_path))
    source = {"path": "coco/annotations/captions_train2017.json", "images": "elsewhere"}
    assert len(read_split(source, "train")) == 3
    with pytest.raises(DataError, match="no folder of photographs"):
        read_split(source | {"images": "nowhere"}, "train")


def test_every_format_can_be_given_as_its_file(tmp_path):
    as_flickr8k(tmp_path / "flickr")
    as_karpathy(tmp_path / "karpathy")
    as_parquet_of_nlphuji(tmp_path / "parquet")
    for file in ("flickr/Flickr8k.token.txt", "karpathy/dataset_mine.json", "parquet/test.parquet"):
        assert content(read_split(str(tmp_path / file), "train")) == expected(NAMES["train"])


def test_missing_broken_and_absurd_things_are_named_and_skipped(tmp_path, capsys):
    from training.feature_cache import decode_image

    write_photos(tmp_path)
    (tmp_path / "tiny.png").write_bytes(draw("red", "circle", side=8))
    (tmp_path / "torn.png").write_bytes(draw("red", "circle")[:100])
    rows = [*caption_rows(), ("gone.png", "a ghost"), ("tiny.png", "a dot"), ("torn.png", "half a thing")]
    rows += [("red.png", "  "), ("green.png", "..."), ("red.png", "a\u2028new\nline"), ("silent.png", "")]
    write_photos(tmp_path, ["red.png"])
    write_csv(tmp_path / "captions.csv", rows)
    split = read_split(str(tmp_path / "captions.csv"), "train")
    said = capsys.readouterr().err
    assert "3 captions are empty or not text and are skipped (red.png, green.png, silent.png)" in said
    assert "1 of 8 photographs have no caption and are skipped (silent.png)" in said
    assert "1 of 7 photographs are not there and are skipped (gone.png)" in said
    assert split.image_ids == [*ALL_NAMES, "tiny.png", "torn.png"]
    assert split.captions[0][-1] == "a new line"
    assert [decode_image(image) is None for image in split.images] == [False] * 4 + [True] * 2
    read_split(str(tmp_path / "captions.csv"), "train")
    assert capsys.readouterr().err == ""  # said once


def test_captions_of_a_table_that_are_not_text(tmp_path, capsys):
    from datasets import Dataset

    image = {"bytes": draw("red", "circle"), "path": None}
    Dataset.from_dict({"image": [image] * 3, "captions": [["a dog", None], None, []]}).to_parquet(
        tmp_path / "a.parquet"
    )
    split = read_split(str(tmp_path), "train")
    assert split.captions == [["a dog"]]
    assert "2 of 3 photographs have no caption and are skipped (1, 2)" in capsys.readouterr().err


def test_photographs_are_read_when_asked_for_only(tmp_path):
    as_csv(tmp_path / "files")
    split = read_split(str(tmp_path / "files"), "train")
    before = split.images[0]
    (tmp_path / "files" / "red.png").write_bytes(b"changed")
    assert split.images[0] == b"changed" != before
    (tmp_path / "files" / "red.png").unlink()
    assert split.images[0] is None
    as_parquet(tmp_path / "parquet")
    images = read_split(str(tmp_path / "parquet"), "train").images
    assert not isinstance(images, list) and isinstance(images[0], bytes) and images[0] is not images[0]


def test_held_out_photographs_stay_when_others_come():
    names = [f"photo{i}.jpg" for i in range(2000)]
    some = {names[i] for i in held_out(names[:1000], 0.2)}
    more = {names[i] for i in held_out(names, 0.2)}
    assert 150 < len(some) < 250 and some == more & set(names[:1000])
    assert len(held_out(["a", "b"], 0.001)) == 1 and len(held_out(["a", "b"], 0.999)) == 1
    assert held_out(["a"], 0.5) == []


def test_a_share_of_a_set_that_is_one_split_by_name(tmp_path):
    write_photos(tmp_path)
    file = str(write_csv(tmp_path / "test.csv", caption_rows()))
    assert len(read_split(file, "test")) == 4
    parts = [read_split({"path": file, "validation_share": 0.4}, split) for split in ("train", "validation")]
    assert sum(map(len, parts)) == 4
    assert len(read_split({"path": file, "split": "all"}, "validation")) == 4


def test_names_are_found_two_folders_deep_and_never_confused(tmp_path):
    for name in ("a/x/1.png", "b/x/1.png", "b/2.png"):
        write_photos((tmp_path / name).parent, [])
        (tmp_path / name).write_bytes(name.encode())
    assert locate(["2.png", "3.png"], [tmp_path]) == [tmp_path / "b/2.png", None]
    assert locate(["other/1.png"], [tmp_path / "b"]) == [tmp_path / "b/x/1.png"]
    found = locate(["a/x/1.png", "b/x/1.png", "c/x/1.png"], [tmp_path])
    assert found == [tmp_path / "a/x/1.png", tmp_path / "b/x/1.png", None]
    assert locate(["C:\\photos\\2.png"], [tmp_path]) == [tmp_path / "b/2.png"]
    for i in range(MAX_FOLDERS + 50):
        (tmp_path / "many" / f"{i:04}").mkdir(parents=True)
    assert locate(["2.png"], [tmp_path]) == [tmp_path / "b/2.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no captions that can be read; looked for parquet files, metadata.csv"),
        ({"one.csv": "file,caption\n", "two.csv": "file,caption\n"}, r"several files .* \(one.csv, two.csv\)"),
        ({"a.csv": "colour,size\nred,3\n"}, "names no photographs: its columns are 'colour, size'"),
        ({"a.csv": "file,size\nred.png,3\n"}, "names no captions"),
        ({"a.csv": ""}, "names no photographs"),
        ({"a.csv": "file,caption\n"}, "no split 'train', only none"),
        ({"a.csv": "file,caption\nred.png,\n"}, "has no caption that is text"),
        ({"a.jsonl": '{"file": "a"}\n{"fi'}, "Line 2 of .* is not a JSON object"),
        ({"captions_train.json": "{"}, "is not valid JSON"),
        ({"captions_train.json": '{"images": [{"id": 1}], "annotations": []}'}, "not COCO's JSON .*'file_name'"),
        ({"dataset_x.json": '{"images": [{"filename": "a.png"}]}'}, "not Karpathy's JSON .*'sentences'"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_split(str(tmp_path), "train")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_data_sets(tmp_path):
    (tmp_path / "a.csv").write_bytes("file,caption\na.png,caf\xe9\n".encode("latin-1"))
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.zip").write_bytes(b"PK")
    for name, message in (("a.csv", "is not UTF-8"), ("a.json", "neither COCO's"), ("a.zip", "no file of captions")):
        with pytest.raises(DataError, match=message):
            read_split(str(tmp_path / name), "train")
    for name in ("nowhere.csv", "./nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(DataError, match="There is no file or folder"):
            detect_format(name)
    assert detect_format("someone/photos") == "datasets"


def test_a_source_is_checked():
    with pytest.raises(RecipeError, match="unknown key 'folder'"):
        read_split({"path": "x", "folder": "y"}, "train")
    with pytest.raises(RecipeError, match="choose from datasets, imagefolder"):
        CaptionSource("x", format="zip")
    with pytest.raises(RecipeError, match="validation_share is a part of 1"):
        CaptionSource("x", validation_share=20)


def test_a_hub_id_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="Cannot read the data set 'nobody/nothing'") as caught:
        read_split("nobody/nothing", "train")
    assert "\n" not in str(caught.value)


def test_features_of_lazy_photographs_are_those_of_bytes_in_memory(tmp_path, capsys):
    import numpy as np

    from modeling.image_processing_captioner import PictaleImageProcessor
    from tests.tiny import tiny_captioner
    from training.feature_cache import open_cache

    as_csv(tmp_path / "set")
    (tmp_path / "set" / "green.png").write_bytes(io.BytesIO(b"no photo").getvalue())
    split = read_split(str(tmp_path / "set"), "train")
    encoder, processor = tiny_captioner().encoder, PictaleImageProcessor(size={"height": 64, "width": 64})
    lazy = open_cache(encoder, processor, split.images, tmp_path / "lazy", label="mine")
    assert "mine: 1 of 4 images cannot be read and are skipped (green.png)" in capsys.readouterr().err
    held = open_cache(encoder, processor, [split.images[row] for row in range(4)], tmp_path / "held", label="held")
    assert "(number 1)" in capsys.readouterr().err
    np.testing.assert_array_equal(lazy.features, held.features)
