"""Styles: made from text, stored whole, refused where they do not belong, blended linearly."""

import bz2
import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from modeling import PictaleSkipThoughtsEncoder, Style, StyleError, make_style
from modeling.fingerprints import encoder_fingerprint
from modeling.styles import MINIMUM_PASSAGES, PAGE_WORDS, encode_passages, parse_style, shift_style, split_passages
from tests.tiny import BOOK, tiny_encoder, tiny_pipeline, tiny_styles, tiny_tokenizer


@pytest.fixture(scope="module")
def encoder():
    model = tiny_encoder()
    model.tokenizer = tiny_tokenizer()
    return model


@pytest.fixture(scope="module")
def known(encoder):
    return {style.name: style for style in tiny_styles(encoder)}


def test_a_style_is_the_mean_of_its_passages(encoder):
    style = make_style(BOOK, "mine", encoder)
    passages = split_passages(BOOK)
    assert style.passages == len(passages) == 25
    np.testing.assert_allclose(style.vector, encode_passages(encoder, passages).mean(0), atol=1e-6)


def test_progress_is_told(encoder):
    told = []
    make_style(BOOK, "mine", encoder, progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) > 2


def test_too_little_text_is_refused_with_the_count(encoder):
    with pytest.raises(StyleError, match=f"1 passages .* at least {MINIMUM_PASSAGES}"):
        make_style(BOOK[:100], "mine", encoder)


@pytest.mark.parametrize("name", ["", "../evil", "a" * 50, "<b>", "x\ny"])
def test_unusable_names_are_refused(encoder, name):
    with pytest.raises(StyleError, match="cannot name a style"):
        make_style(BOOK, name, encoder)


def test_save_and_load_keep_everything(tmp_path, known):
    style = known["romance"]
    style.save(tmp_path / "romance.safetensors")
    again = Style.load(tmp_path / "romance.safetensors")
    np.testing.assert_array_equal(again.vector, style.vector)
    assert (again.name, again.passages, again.source, again.encoder, again.filter) == (
        style.name,
        style.passages,
        style.source,
        style.encoder,
        style.filter,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["romance.safetensors"]


# -- pages ------------------------------------------------------------------------------------------------------------
LONG = "\n\n".join(
    " ".join(
        [f"The old lady of the {colour} house said\n“no” to the dog in the sea and the cat at {hour} o'clock."] * 2
    )
    for colour in ("red", "blue", "green", "white", "black")
    for hour in ("one", "two", "three", "four", "five")
)


def test_a_style_keeps_pages_of_its_text_with_their_thoughts(encoder):
    style = make_style(LONG, "mine", encoder)
    assert len(style.pages) == style.passages == 25
    for page, passage in zip(style.pages, split_passages(LONG), strict=True):
        assert page == " ".join(" ".join(passage).split()) and "\n" not in page
        assert PAGE_WORDS[0] <= len(page.split()) <= PAGE_WORDS[1]
    assert style.page_vectors.dtype == np.float16
    np.testing.assert_allclose(style.page_vectors, encode_passages(encoder, split_passages(LONG)), atol=1e-3)


def test_so_many_pages_as_wished_evenly_from_the_book(encoder):
    whole, few = make_style(LONG, "mine", encoder), make_style(LONG, "mine", encoder, pages=5)
    assert few.pages == whole.pages[::5] and few.page_vectors.shape == (5, 24)
    none = make_style(LONG, "mine", encoder, pages=0)
    assert none.pages == () and none.page_vectors is None
    for style in (few, none):
        np.testing.assert_array_equal(style.vector, whole.vector)
    assert make_style(BOOK, "mine", encoder).pages == ()  # its passages are too short to show a manner


def test_pages_are_saved_and_files_without_any_are_read(tmp_path, encoder, known):
    style = make_style(LONG, "mine", encoder)
    style.save(tmp_path / "mine.safetensors")
    again = Style.load(tmp_path / "mine.safetensors")
    assert again.pages == style.pages and again.pages[0].count("“") == 2
    np.testing.assert_array_equal(again.page_vectors, style.page_vectors)
    known["romance"].save(tmp_path / "old.safetensors")  # as the first edition wrote it
    with safe_open(tmp_path / "old.safetensors", framework="np") as file:
        assert list(file.keys()) == ["vector"]
    old = Style.load(tmp_path / "old.safetensors")
    assert old.pages == () and old.page_vectors is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"pages": np.frombuffer(b"no bz2", np.uint8)},
        {"pages": np.frombuffer(bz2.compress(b"One page."), np.uint8)},  # of two vectors
        {"pages": np.frombuffer(bz2.compress(b"\xff\nTwo."), np.uint8)},
        {"pages": np.frombuffer(bz2.compress(b"One.\nTwo.")[:-6], np.uint8)},
        {"pages": np.frombuffer(bz2.compress(b"a" * 2_000_000), np.uint8)},  # a small file that fills the memory
        {"page_vectors": np.full((2, 24), np.nan, np.float16)},
        {"page_vectors": np.ones((2, 3), np.float16)},
        {"page_vectors": None},
    ],
)
def test_pages_that_are_none_are_one_sentence(tmp_path, known, arrays):
    path = tmp_path / "style.safetensors"
    pages = {"pages": ("One.", "Two."), "page_vectors": np.ones((2, 24), np.float16)}
    dataclasses.replace(known["romance"], **pages).save(path)
    assert Style.load(path).pages == ("One.", "Two.")
    with safe_open(path, framework="np") as file:
        found, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    found = {name: array for name, array in (found | arrays).items() if array is not None}
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, path, metadata)
    with pytest.raises(StyleError, match="is damaged") as error:
        Style.load(path)
    assert "\n" not in str(error.value)


def test_broken_files_are_one_sentence(tmp_path, known):
    path = tmp_path / "style.safetensors"
    with pytest.raises(StyleError, match="no style file"):
        Style.load(path)
    known["romance"].save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StyleError, match="damaged"):
        Style.load(path)


@pytest.mark.parametrize(
    "change", [{"filter": "5"}, {"filter": "{"}, {"passages": "many"}, {"name": "<b>"}, {"name": ""}]
)
def test_strange_files_are_one_sentence(tmp_path, known, change):
    path = tmp_path / "style.safetensors"
    known["romance"].save(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file({"vector": known["romance"].vector}, path, metadata | {"source": "x" * 5000})
    assert len(Style.load(path).source) == 300
    save_file({"vector": known["romance"].vector}, path, metadata | change)
    with pytest.raises(StyleError):
        Style.load(path)


def test_a_style_of_another_width_is_refused():
    pipe = tiny_pipeline()
    style = dataclasses.replace(pipe.styles["romance"], name="narrow", vector=np.ones(3, np.float32))
    with pytest.raises(StyleError, match="3 numbers, not 24"):
        pipe.add_style(style)


def test_the_fingerprint_knows_encoders_apart_but_not_precisions():
    first = encoder_fingerprint(tiny_encoder())
    assert first == encoder_fingerprint(tiny_encoder()) == encoder_fingerprint(tiny_encoder().half())
    assert first != encoder_fingerprint(tiny_encoder(seed=1))


def test_a_saved_encoder_is_the_same_in_bfloat16(tmp_path):
    """Rounded weights have lost what the fingerprint is made of; the config has kept it."""
    first = encoder_fingerprint(tiny_encoder())
    tiny_encoder().save_pretrained(tmp_path / "full")
    rounded = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and rounded.fingerprint() == first
    rounded.save_pretrained(tmp_path / "rounded")
    assert PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "rounded", dtype=torch.float32).fingerprint() == first
    whole = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "full")
    assert whole.to(torch.bfloat16).fingerprint() == first
    other = tiny_encoder(seed=1)
    other.config.fingerprint = first  # as after training on from it
    assert other.fingerprint() == encoder_fingerprint(tiny_encoder(seed=1)) != first


def test_a_style_of_another_encoder_is_refused(known):
    with pytest.raises(StyleError, match="another encoder"):
        known["romance"].check_encoder("0" * 12)


def test_blends_are_linear_and_normalised(known):
    label, vector = parse_style("romance:7,horror:3", known)
    expected = 0.7 * known["romance"].vector + 0.3 * known["horror"].vector
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert label == "romance:0.7,horror:0.3"
    np.testing.assert_allclose(parse_style({"romance": 0.7, "horror": 0.3}, known)[1], expected, atol=1e-6)
    assert parse_style("romance", known)[0] == parse_style(known["romance"], known)[0] == "romance"


def test_a_style_is_known_by_its_name_as_people_write_it(known):
    known = {**known, "fairy_tale": known["horror"]}
    assert {parse_style(name, known)[0] for name in ("fairy_tale", "Fairy tale", " FAIRY-TALE ")} == {"fairy_tale"}
    assert parse_style("Romance:1,romance:1,fairy tale:2", known)[0] == "romance:0.5,fairy_tale:0.5"


@pytest.mark.parametrize("style", ["romnce", "romance:x", "romance:-1,horror:2", "romance:0", "", "romance:nan"])
def test_bad_styles_are_one_sentence(known, style):
    with pytest.raises(StyleError) as error:
        parse_style(style, known)
    assert str(error.value).count("\n") == 0
    if style == "romnce":
        assert "romance, horror" in str(error.value)


def test_the_shift():
    x, c, b = (np.full(3, v, dtype=np.float32) for v in (5, 2, 7))
    np.testing.assert_allclose(shift_style(x, c, b, 0.5), 5 - 2 + 0.5 * 7)
    np.testing.assert_allclose(shift_style(x, c, b), 5 - 2 + 7)
    assert shift_style(x.astype(np.float64), c, b).dtype == np.float32


def test_the_command_line_makes_a_style_from_files(tmp_path, encoder, capsys, monkeypatch):
    import json
    import sys

    from training import make_style as script

    encoder.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    (tmp_path / "book.txt").write_text(BOOK)
    out = tmp_path / "mine.safetensors"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_style", "--encoder", str(tmp_path / "encoder"), *map(str, arguments)])
        script.main()

    run("--text", tmp_path / "book.txt", "--output", out, "--json")
    assert json.loads(capsys.readouterr().out)["passages"] == 25
    np.testing.assert_allclose(Style.load(out).vector, make_style(BOOK, "mine", encoder).vector, atol=1e-6)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(SystemExit, match="at least"):
        run("--text", tmp_path / "short.txt", "--output", tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_a_style_of_each_genre_of_a_data_set(tmp_path, encoder):
    from training.make_style import styles_from_dataset
    from training.tiny_text import write_tiny_text

    write_tiny_text(tmp_path)
    styles = styles_from_dataset(str(tmp_path / "tiny-books"), encoder)
    assert set(styles) == {"romance", "horror"}
    with pytest.raises(StyleError, match="romance, horror"):
        styles_from_dataset(str(tmp_path / "tiny-books"), encoder, "western")
