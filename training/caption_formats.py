"""Readers of the formats in which photographs with captions are kept; `training.caption_sources` chooses among them.

datasets     a Hub dataset, a folder of parquet files, or one written by `save_to_disk`
imagefolder  photographs with metadata.csv, .jsonl or .parquet, as `datasets` defines it
coco         COCO's own captions_train2017.json (Lin et al., arXiv:1405.0312; Chen et al., arXiv:1504.00325)
karpathy     dataset_flickr8k.json, dataset_coco.json (Karpathy and Fei-Fei, arXiv:1412.2306)
flickr       Flickr8k.token.txt with its lists of splits (Hodosh et al., 2013), results_20130124.token
table        CSV, TSV or JSON lines with a photograph and a caption in each row
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling.errors import DataError

from .caption_records import SPLITS, FileRecords, Records, TableRecords, canonical_split, file_records

IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "png")
FILE_COLUMNS = ("file_name", "filename", "file", "image_name", "image_path", "image_file", "filepath", "path", "name")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "sentence", "text", "texts", "comment", "description")
ID_COLUMNS = ("image_id", "img_id", "imgid", "cocoid", "id", *FILE_COLUMNS)
NUMBERED_CAPTION = re.compile(r"caption_?\d+")
TOKEN_LINE = re.compile(r"(\S.*?)#\d+\t(.*)")
COCO_FILES = ("captions_*.json", "annotations/captions_*.json")
KARPATHY_FILES = ("dataset_*.json", "dataset.json")
FLICKR_FILES = ("*.token", "*.token.txt")
TABLES = ("*.csv", "*.tsv", "*.jsonl", "captions*.txt", "results*.txt")
PHOTO_NAME = re.compile(r".+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)", re.IGNORECASE)


# -- columns -----------------------------------------------------------------------------------------------------------
def simple_name(column: str) -> str:
    return re.sub(r"\W+", "_", column.strip().lower())


def find_column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The column whose name comes first in `wanted`, capitals and spaces aside."""
    simple = {simple_name(column): column for column in reversed(columns)}
    return next((simple[name] for name in wanted if name in simple), None)


def caption_columns(columns: Sequence[str]) -> list[str]:
    """The column of captions, or the columns caption_0, caption_1, ..."""
    found = find_column(columns, CAPTION_COLUMNS)
    return [found] if found else [column for column in columns if NUMBERED_CAPTION.fullmatch(simple_name(column))]


def flat_captions(value: Any) -> list[Any]:
    """Captions as a flat list: of one text, a list of texts, or the dicts with `raw` that COCO's Hub versions hold."""
    if isinstance(value, (list, tuple)):
        return [caption for item in value for caption in flat_captions(item)]
    if isinstance(value, Mapping):
        return flat_captions(value.get("raw", value.get("caption")))
    return [value]


# -- tables of `datasets` ----------------------------------------------------------------------------------------------
def read_datasets(path: str, images: str | None, config: str | None = None) -> Records:
    """A Hub dataset, a folder of parquet files, one parquet file, or what `save_to_disk` wrote."""
    import datasets

    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(path)
        elif folder.suffix == ".parquet" and folder.is_file():
            loaded = datasets.load_dataset("parquet", data_files=path)
        else:
            loaded = datasets.load_dataset(path, config)
    except Exception as error:  # noqa: BLE001 - datasets raises its own, huggingface_hub's, pyarrow's and OSError for the same cause
        raise unreadable(path, error) from None
    return table_records(path, loaded if isinstance(loaded, dict) else {"train": loaded})


def read_imagefolder(path: str, images: str | None) -> Records:
    """Photographs with a metadata file that says their captions in the column file_name and another."""
    import datasets

    try:
        return table_records(path, datasets.load_dataset("imagefolder", data_dir=path))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(
        f"Cannot read the data set '{path}' ({reason}). Give a file or folder of captions or a Hub id, or set "
        f"PICTALE_DATA to the folder that holds '{path}'."
    )


def table_records(path: str, tables: Mapping[str, Any]) -> TableRecords:
    """Rows of all splits; rows of one photograph are one photograph with several captions."""
    import datasets

    records = TableRecords([], [], [], None, [], path)
    places: dict[str, int] = {}
    image_tables, offset = [], 0
    for split, table in tables.items():
        columns = table.column_names
        image, caption = find_column(columns, IMAGE_COLUMNS), caption_columns(columns)
        if not caption:
            raise DataError(
                f"The data set '{path}' has no column 'captions' (or caption, sentences, text); its columns are "
                f"{', '.join(columns)}."
            )
        pictures = table.select_columns([image] if image else [])
        if image:
            pictures = pictures if image == "image" else pictures.rename_column(image, "image")
            pictures = pictures.cast_column("image", datasets.Image(decode=False))
            image_tables.append(pictures)
        ids = _row_ids(table, pictures, find_column([c for c in columns if c != image], ID_COLUMNS), offset)
        own = find_column(columns, ("split",))
        splits = [canonical_split(value) for value in table[own]] if own else []
        if not set(splits) & set(SPLITS):
            splits = [canonical_split(split)] * len(table)
        texts = zip(*(table[column] for column in caption), strict=True)
        for row, (image_id, values, row_split) in enumerate(zip(ids, texts, splits, strict=True)):
            place = places.setdefault(f"{row_split}\n{image_id}", len(records.rows))
            if place == len(records.rows):
                records.rows.append(offset + row)
                records.image_ids.append(image_id)
                records.splits.append(row_split)
                records.captions.append([])
            records.captions[place] += flat_captions(values)
        offset += len(table)
    if len(image_tables) == len(tables):
        records.table = datasets.concatenate_datasets(image_tables)
    return records


def _row_ids(table: Any, pictures: Any, column: str | None, offset: int) -> list[str]:
    """Names of the photographs: the id column, else the file, else the number of the row."""
    if column is not None:
        return [str(value) for value in table[column]]
    if "image" not in pictures.column_names:
        return [str(offset + row) for row in range(len(table))]
    import pyarrow.compute

    image = pictures.data.column("image")
    inside = pyarrow.compute.is_valid(pyarrow.compute.struct_field(image, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(image, "path").to_pylist()
    # the path of a photograph that is kept inside the table is a bare name, which another may share
    return [
        str(offset + row) if held or not path else path
        for row, (held, path) in enumerate(zip(inside, paths, strict=True))
    ]


# -- files of captions beside their photographs ------------------------------------------------------------------------
def image_roots(file: Path, images: str | None) -> list[Path]:
    """Folders to look for photographs in: the one given, else around the file of captions."""
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"There is no folder of photographs '{images}': check the name.")
        return [Path(images)]
    around = file if file.is_dir() else file.parent
    return [around, around.parent] if around.name == "annotations" else [around]


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text: save it again as CSV UTF-8.") from None


def read_json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON ({error}): copy or download it again.") from None


def split_of_file(file: Path) -> str | None:
    """The split that a file's name speaks of: train.csv, captions_val2017.json."""
    words = re.findall(r"[a-z]+", file.stem.lower())
    return next((name for word in words if (name := canonical_split(word)) in SPLITS), None)


def read_coco(path: str, images: str | None) -> FileRecords:
    """captions_*.json files: `images` with file_name and id, `annotations` with image_id and caption."""
    records = FileRecords([], [], [], [], image_roots(Path(path), images))
    for file in _files(Path(path), *COCO_FILES):
        data = read_json(file)
        try:
            names = {image["id"]: str(image["file_name"]) for image in data["images"]}
            captions: dict[Any, list[Any]] = {key: [] for key in names}
            for note in data["annotations"]:
                captions.setdefault(note["image_id"], []).append(note["caption"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file} is not COCO's JSON of captions ({error} is missing): take captions_*.json."
            ) from None
        records.image_ids += [str(key) for key in names]
        records.names += list(names.values())
        records.captions += [captions[key] for key in names]
        records.splits += [split_of_file(file)] * len(names)
    return records


def read_karpathy(path: str, images: str | None) -> FileRecords:
    """dataset_*.json: `images` with filename, split, `sentences[].raw` and, for COCO, filepath."""
    rows = []
    for file in _files(Path(path), *KARPATHY_FILES):
        try:
            for image in read_json(file)["images"]:
                name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
                rows.append((name, [s.get("raw") for s in image["sentences"]], canonical_split(image.get("split"))))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not Karpathy's JSON of captions ({error} is missing).") from None
    return file_records(rows, image_roots(Path(path), images))


def read_flickr(path: str, images: str | None) -> FileRecords:
    """`name.jpg#0<TAB>caption` lines; *trainImages.txt, *devImages.txt, *testImages.txt beside them name the splits."""
    rows, splits = [], {}
    for file in _files(Path(path), *FLICKR_FILES):
        for names in file.parent.glob("*Images.txt"):
            split = canonical_split(re.sub(r".*[._]|Images$", "", names.stem))
            splits |= {name: split for name in read_text(names).split()}
        for line in filter(None, map(str.strip, read_text(file).split("\n"))):
            match = TOKEN_LINE.fullmatch(line)
            name, caption = match.groups() if match else (line[:40], None)
            rows.append((name, caption, None))
    records = file_records(rows, image_roots(Path(path), images))
    records.splits = [splits.get(name) for name in records.names]
    return records


def read_table(path: str, images: str | None) -> FileRecords:
    """CSV, TSV or JSON lines. Several rows of a photograph are several captions; a column `split` is obeyed, else the
    name of the file says the split: train.csv, val.csv."""
    rows: list[tuple[str, Any, str | None]] = []
    for file in _files(Path(path), *TABLES):
        records = _json_lines(file) if file.suffix == ".jsonl" else _delimited(file)
        rows += [(name, captions, own or split_of_file(file)) for name, captions, own in records]
    return file_records(rows, image_roots(Path(path), images))


def _json_lines(file: Path) -> Iterator[tuple[str, Any, str | None]]:
    records = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        try:
            if line.strip():
                records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(f"Line {number} of {file} is not a JSON object: mend or remove it.") from None
    columns = list(dict.fromkeys(column for record in records for column in record))
    name, captions, split = _needed_columns(file, columns)
    for record in records:
        values = [value for column in captions for value in flat_captions(record.get(column))]
        yield str(record.get(name) or ""), values, canonical_split(record.get(split)) if split else None


def _needed_columns(file: Path, columns: Sequence[str]) -> tuple[str, list[str], str | None]:
    name, captions = find_column(columns, (*FILE_COLUMNS, *IMAGE_COLUMNS)), caption_columns(columns)
    if name is None or not captions:
        raise DataError(
            f"{file} names no {'photographs' if name is None else 'captions'}: its columns are "
            f"'{', '.join(columns)[:80]}', and it needs file_name (or file, image) and caption (or captions, text)."
        )
    return name, captions, find_column(columns, ("split",))


def _delimited(file: Path) -> Iterator[tuple[str, Any, str | None]]:
    lines = list(io.StringIO(read_text(file), newline=""))  # not splitlines(), which also breaks at odd characters
    delimiter, columns = _header(file, lines[0] if lines else "")
    headless = columns is None
    name, captions, split = ("file", ["caption"], None) if headless else _needed_columns(file, columns)
    columns = columns or ["file", "caption"]
    quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
    rows = csv.reader(lines if headless else lines[1:], delimiter=delimiter, quoting=quoting)
    try:
        for row in filter(any, rows):
            if len(row) > len(columns) and columns[-1] in captions:  # a caption with commas and without quotes
                row[len(columns) - 1 :] = [delimiter.join(row[len(columns) - 1 :])]
            record = dict(zip(columns, row, strict=False))
            texts = [record.get(column) for column in captions]
            if len(texts) > 1:  # of caption_0 ... caption_4 some may be empty
                texts = [text for text in texts if text and text.strip()] or [None]
            yield record.get(name, "").strip(), texts, canonical_split(record.get(split)) if split else None
    except csv.Error as error:
        raise DataError(
            f"{file} cannot be read near line {rows.line_num} ({error}): check its quotation marks."
        ) from None


def _header(file: Path, line: str) -> tuple[str, list[str] | None]:
    """Delimiter and columns; no columns where the first line already is a photograph and its caption."""
    for delimiter in "\t,;|":
        columns = [column.strip() for column in next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])]
        if find_column(columns, (*FILE_COLUMNS, *IMAGE_COLUMNS)) and caption_columns(columns):
            return delimiter, columns
        if len(columns) > 1 and PHOTO_NAME.fullmatch(columns[0]):
            return delimiter, None
    columns = re.split(r"[\t,;|]", line.strip())
    _needed_columns(file, columns)  # says what is missing
    raise DataError(f"{file} has no header that can be read: its first line is '{line.strip()[:80]}'.")


def _files(path: Path, *patterns: str) -> list[Path]:
    return [path] if path.is_file() else matching(path, *patterns)


def matching(folder: Path, *patterns: str) -> list[Path]:
    """Files of a folder by glob patterns, in order of their names."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
