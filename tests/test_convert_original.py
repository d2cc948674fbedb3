"""Converted models against the equations of the originals, and what happens to files that are not right."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling import (
    OriginalStoryteller,
    PictaleOriginalDecoder,
    PictaleOriginalJointEmbedding,
    PictaleOriginalSkipThoughtsEncoder,
    PictaleSkipThoughtsEncoder,
    Style,
    StyleError,
)
from modeling.errors import TextError
from tests import original_files as original
from tests.tiny import tiny_encoder
from training import convert_original
from training.convert_original import convert
from training.original_files import OriginalFileError, read_dictionary, read_pickle, read_rows

SENTENCES = ["a dog runs on the beach .", "Dog", "the unseen caf\u00e9 .", "a", "a cat on the beach runs ."]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def combine(source, tmp_path):
    model = original.write_skip_thoughts(source)
    return model, convert("skip-thoughts", [source], tmp_path / "combine")


# -- the encoder ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("use_eos", [False, True])
def test_combine_skip_vectors_are_the_equations(combine, use_eos):
    model, folder = combine
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder)
    vectors = encoder.encode(SENTENCES, use_eos=use_eos)
    expected = np.stack([original.combine_skip(model, s.split(), use_eos) for s in SENTENCES])
    assert vectors.dtype == np.float32 and vectors.shape == (5, 6 + 4 + 4)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(SENTENCES, use_eos=use_eos, batch_size=1), vectors, atol=1e-6)


def test_parts_alone_are_the_parts_of_both(source, tmp_path):
    model = original.write_skip_thoughts(source)
    expected = np.stack([original.combine_skip(model, s.split()) for s in SENTENCES])
    for name, columns, tables in (("uni", slice(0, 6), "utable.npy"), ("bi", slice(6, 14), "btable.npy")):
        files = [source / f"{name}_skip.npz", source / tables, source / "dictionary.txt"]
        folder = convert("skip-thoughts", files, tmp_path / name)
        vectors = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder).encode(SENTENCES)
        np.testing.assert_allclose(vectors, expected[:, columns], atol=1e-5)


def test_text_is_split_as_the_original_did(combine):
    model, folder = combine
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder)
    text = "A dog can't. The caf\u00e9!"
    words = ["A", "dog", "ca", "n't", ".", "The", "caf\u00e9", "!"]
    np.testing.assert_allclose(encoder.encode([text])[0], original.combine_skip(model, words), atol=1e-5)
    np.testing.assert_allclose(encoder.encode([""])[0], original.combine_skip(model, ["<eos>"]), atol=1e-5)


def test_forward_of_padded_rows_is_encode(combine):
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(combine[1])
    ids = torch.tensor([[2, 3, 0, 0], [5, 6, 7, 4]])
    thought = encoder(ids, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])).thought
    texts = [" ".join(original.WORDS[i] for i in row) for row in ([2, 3], [5, 6, 7, 4])]
    np.testing.assert_allclose(thought.detach().numpy(), encoder.encode(texts, normalize=False), atol=1e-6)


def test_tables_stay_on_disk_and_travel_with_the_model(combine, tmp_path):
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(combine[1])
    assert isinstance(encoder.table("uni"), np.memmap) and isinstance(encoder.table("bi"), np.memmap)
    encoder.save_pretrained(tmp_path / "copy")
    encoder.tokenizer.save_pretrained(tmp_path / "copy")
    for again in (
        AutoModel.from_pretrained(tmp_path / "copy"),
        AutoModel.from_pretrained(tmp_path / "copy", trust_remote_code=True),
    ):
        np.testing.assert_array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


def test_config_and_weights_hold_no_path_of_this_machine(combine, tmp_path):
    for file in combine[1].iterdir():
        if file.suffix in (".json", ".py"):
            assert str(tmp_path) not in file.read_text(encoding="utf-8")


def test_nearest_sentences_and_words(combine):
    model, folder = combine
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder)
    assert encoder.nearest(["Dog"], SENTENCES, k=2)[0][0].text == "Dog"
    table = np.stack(list(model["tables"]["uni"].values()))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    cosines = table @ table[3]
    best = [i for i in np.argsort(-cosines) if i != 3][:4]
    found = encoder.nearest_words(["dog"], k=4)[0]
    assert [n.index for n in found] == best
    assert [n.text for n in found] == [list(model["tables"]["uni"])[i] for i in best]
    with pytest.raises(TextError, match="no word 'zebra'"):
        encoder.nearest_words(["zebra"])


def test_an_encoder_of_ones_own_without_tables(source, tmp_path):
    original.write_skip_thoughts(source)
    for name in ("utable.npy", "btable.npy", "dictionary.txt"):
        (source / name).unlink()
    dictionary = OrderedDict((word, i) for i, word in enumerate(original.WORDS) if i > 1)
    (source / "words.pkl").write_bytes(original.python2_pickle(dictionary, 0))
    folder = convert("skip-thoughts", [source], tmp_path / "out")
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder)
    assert encoder.config.vocab_size == 7  # words beyond Wemb are dropped
    with np.load(source / "uni_skip.npz") as arrays:
        expected = original.unit(original.last_state(arrays, "encoder", arrays["Wemb"][[2, 3, 1, 1]]))
    np.testing.assert_allclose(encoder.encode(["a dog beach zebra"])[0, :6], expected, atol=1e-5)


def test_the_last_row_of_a_doubled_word_counts(source, tmp_path):
    model = original.write_skip_thoughts(source)
    lines = (source / "dictionary.txt").read_text("utf-8").split("\n")[:-1]
    lines[-1] = "dog"
    (source / "dictionary.txt").write_text("\n".join(lines) + "\n", "utf-8")
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(convert("skip-thoughts", [source], tmp_path / "out"))
    assert encoder.config.vocab_size == len(lines) - 1
    row = encoder.tokenizer.convert_tokens_to_ids("dog")
    np.testing.assert_array_equal(encoder.table("uni")[row], model["tables"]["uni"]["word2"])


# -- the decoder ------------------------------------------------------------------------------------------------------
def converted_decoder(source, tmp_path, deep, options=True):
    arrays = original.write_decoder(source, deep, options)
    return arrays, PictaleOriginalDecoder.from_pretrained(convert("decoder", [source], tmp_path / "decoder"))


@pytest.mark.parametrize(("deep", "options"), [(False, True), (True, True), (True, False)])
def test_decoder_logits_are_the_equations(source, tmp_path, deep, options):
    arrays, decoder = converted_decoder(source, tmp_path, deep, options)
    thought, ids = np.random.default_rng(3).normal(size=14).astype(np.float32), [3, 4, 1, 9]
    given = torch.tensor([[-1, *ids]])
    logits = decoder(torch.from_numpy(thought)[None], given).logits[0].detach().numpy()
    np.testing.assert_allclose(logits, original.decoder_logits(arrays, thought, ids, deep), atol=1e-5)
    first = decoder(torch.from_numpy(thought)[None])
    second = decoder(state=first.state, decoder_input_ids=torch.tensor([[3]])).logits[0, 0]
    np.testing.assert_allclose(second.detach().numpy(), logits[1], atol=1e-5)


def reference_search(arrays, thought, deep, beams, limit):
    """The search of the original with one cost per beam: all costs, the smallest first."""
    live, done = [((), 0.0)], []
    for _ in range(limit):
        candidates = []
        for ids, cost in live:
            scores = original.decoder_logits(arrays, thought, list(ids), deep)[-1]
            log_p = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
            candidates += [((*ids, w), cost - log_p[w]) for w in range(len(log_p)) if w != 1]
        kept = sorted(candidates, key=lambda c: c[1])[: beams - len(done)]
        done += [(ids[:-1], cost) for ids, cost in kept if ids[-1] == 0]
        live = [(ids, cost) for ids, cost in kept if ids[-1] != 0]
        if not live or len(done) >= beams:
            break
    return sorted(done + live, key=lambda c: (not c[0], c[1]))


@pytest.mark.parametrize(("beams", "limit"), [(1, 6), (3, 5), (6, 4)])
def test_beam_search_is_the_plain_one(source, tmp_path, beams, limit):
    arrays, decoder = converted_decoder(source, tmp_path, deep=False)
    for seed in range(3):
        thought = np.random.default_rng(seed).normal(size=14).astype(np.float32)
        found = decoder.generate(thought, num_beams=beams, max_new_tokens=limit)
        expected = reference_search(arrays, thought, False, beams, limit)
        assert [tuple(b.ids) for b in found] == [ids for ids, _ in expected]
        np.testing.assert_allclose([b.cost for b in found], [cost for _, cost in expected], atol=1e-4)
        assert all(1 not in b.ids for b in found)


def test_a_wide_beam_finds_the_best_of_all(source, tmp_path):
    """A beam wider than the number of sequences is an exhaustive search."""
    arrays, decoder = converted_decoder(source, tmp_path, deep=True)
    thought = np.random.default_rng(5).normal(size=14).astype(np.float32)
    best = decoder.generate(thought, num_beams=2000, max_new_tokens=3)[0]
    everything = reference_search(arrays, thought, True, 10**6, 3)
    assert tuple(best.ids) == everything[0][0] and best.cost == pytest.approx(everything[0][1], abs=1e-4)


def test_decoder_writes_words_and_bars_unknown(source, tmp_path):
    _, decoder = converted_decoder(source, tmp_path, deep=False)
    thought = np.random.default_rng(0).normal(size=14)
    with torch.no_grad():
        decoder.output.bias[1] += 50
    assert "UNK" not in decoder.write(thought, num_beams=4, max_new_tokens=5).split()
    assert set(decoder.write(thought, num_beams=4, max_new_tokens=5, use_unknown=True).split()) == {"UNK"}
    with pytest.raises(TextError, match="14 numbers"):
        decoder.generate(np.zeros(4800))


# -- the joint embedding ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bow", [False, True])
def test_joint_embedding_is_the_equations(source, tmp_path, bow):
    arrays = original.write_embedding(source, bow)
    folder = convert("joint-embedding", [source], tmp_path / "out")
    embedding = PictaleOriginalJointEmbedding.from_pretrained(folder)
    ids = [[2, 3, 4, 0], [6, 1, 1, 0], [0]]
    expected = [
        original.unit(
            arrays["Wemb"][row].sum(0) if bow else original.last_state(arrays, "encoder", arrays["Wemb"][row])
        )
        for row in ids
    ]
    vectors = embedding.embed_sentences(["a dog runs", "the late zebra", ""])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    features = np.random.default_rng(0).normal(size=(2, 9))
    images = np.stack([original.unit(original.unit(f) @ arrays["ff_image_W"] + arrays["ff_image_b"]) for f in features])
    np.testing.assert_allclose(embedding.embed_images(features), images, atol=1e-5)
    nearest = embedding.nearest(features, ["a dog runs", "the late zebra", ""], k=3)
    for row, found in zip(images @ np.array(expected).T, nearest, strict=True):
        assert [n.index for n in found] == np.argsort(-row).tolist()


# -- styles and stories -----------------------------------------------------------------------------------------------
def storyteller(combine, source, tmp_path):
    folder = combine[1]
    rng = np.random.default_rng(7)
    for name in ("romance", "caption"):
        np.save(source / f"{name}_style.npy", rng.normal(size=14).astype(np.float32))
    styles = convert("style", [source], tmp_path / "styles", encoder=str(folder))
    original.write_decoder(source, deep=False)
    decoder = PictaleOriginalDecoder.from_pretrained(convert("decoder", [source], tmp_path / "decoder"))
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(folder)
    book, caption = (Style.load(styles / f"{name}_style.safetensors") for name in ("romance", "caption"))
    return OriginalStoryteller(encoder, decoder, caption, book)


def test_styles_and_the_recipe_of_2015(combine, source, tmp_path):
    teller = storyteller(combine, source, tmp_path)
    assert teller.book_style.name == "romance"
    np.testing.assert_array_equal(teller.book_style.vector, np.load(source / "romance_style.npy"))
    mean = np.mean([original.combine_skip(combine[0], s.split()) for s in SENTENCES[:2]], 0)
    shift = mean - np.load(source / "caption_style.npy") + np.load(source / "romance_style.npy")
    np.testing.assert_allclose(teller.shift(SENTENCES, k=2), shift, atol=1e-5)
    story = teller(SENTENCES, k=2, beam_width=3, max_new_tokens=6)
    assert story == teller.decoder.write(shift.astype(np.float32), num_beams=3, max_new_tokens=6)
    assert teller(SENTENCES, k=2, beam_width=3, max_new_tokens=6, lyric=True)


def test_a_style_of_another_encoder_is_refused(combine, source, tmp_path):
    teller = storyteller(combine, source, tmp_path)
    with pytest.raises(StyleError, match="another encoder"):
        OriginalStoryteller(tiny_encoder(), teller.decoder, teller.caption_style, teller.book_style)


def test_a_style_of_another_width_is_refused(combine, source, tmp_path):
    np.save(source / "wide_style.npy", np.zeros(4800))
    with pytest.raises(OriginalFileError, match="4800 numbers"):
        convert("style", [source / "wide_style.npy"], tmp_path / "styles", encoder=str(combine[1]))
    assert not (tmp_path / "styles").exists()


# -- pickles ----------------------------------------------------------------------------------------------------------
class Evil:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_pickles_of_plain_data(tmp_path, protocol):
    value = {"n": 3, "x": 1.5, "none": None, "list": [1, (2, "three")], "array": np.arange(6.0).reshape(2, 3)}
    (tmp_path / "file.pkl").write_bytes(original.python2_pickle(value, protocol))
    read = read_pickle(tmp_path / "file.pkl")
    np.testing.assert_array_equal(read.pop("array"), value.pop("array"))
    assert read == value | {"list": [1, [2, "three"]]}


def test_words_of_either_python(tmp_path):
    words = {"caf\u00e9": 2, "na\u00efve": 3, "\u65e5\u672c": 4}
    (tmp_path / "2.pkl").write_bytes(original.python2_pickle(words))
    (tmp_path / "3.pkl").write_bytes(pickle.dumps(OrderedDict(words)))
    assert read_dictionary(tmp_path / "2.pkl") == read_dictionary(tmp_path / "3.pkl") == words


@pytest.mark.parametrize("value", [Evil(), {"a": Evil()}, np.array([Evil()], dtype=object), print, tiny_encoder])
def test_pickles_that_do_anything_else_are_refused(tmp_path, capsys, value):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(OriginalFileError, match="file.pkl"):
        read_pickle(tmp_path / "file.pkl")
    np.save(tmp_path / "file.npy", np.array([value, value], dtype=object), allow_pickle=True)
    with pytest.raises(OriginalFileError, match="file.npy"):
        list(read_rows(tmp_path / "file.npy"))
    assert not capsys.readouterr().out


def test_object_arrays_of_todays_numpy_are_read(tmp_path):
    rows = np.empty(3, dtype=object)
    rows[:] = [np.arange(4, dtype=np.float64) + i for i in range(3)]
    np.save(tmp_path / "rows.npy", rows, allow_pickle=True)
    np.testing.assert_array_equal(np.stack(list(read_rows(tmp_path / "rows.npy"))), np.stack(list(rows)))
    np.save(tmp_path / "plain.npy", np.stack(list(rows)))
    np.testing.assert_array_equal(np.stack(list(read_rows(tmp_path / "plain.npy"))), np.stack(list(rows)))


# -- files that are not right -----------------------------------------------------------------------------------------
def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resave(path, **changes):
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


SPOILERS = {
    "uni_skip.npz is cut off": (lambda s: cut(s / "uni_skip.npz"), "uni_skip.npz cannot be read"),
    "utable.npy is cut off": (lambda s: cut(s / "utable.npy"), "utable.npy is damaged"),
    "utable.npy is no array": (
        lambda s: (s / "utable.npy").write_bytes(b"<html>404</html>"),
        "utable.npy is not an .npy",
    ),
    "btable.npy is missing": (lambda s: (s / "btable.npy").unlink(), "btable.npy"),
    "dictionary.txt is missing": (lambda s: (s / "dictionary.txt").unlink(), "dictionary.txt"),
    "dictionary.txt is short": (lambda s: cut(s / "dictionary.txt"), "rows and the dictionary"),
    "dictionary.txt is another": (lambda s: (s / "dictionary.txt").write_text("a\nb\n"), "no word <eos>"),
    "an array is missing": (lambda s: resave(s / "uni_skip.npz", encoder_Wx=None), "no array 'encoder_Wx'"),
    "a shape is wrong": (
        lambda s: resave(s / "bi_skip.npz", encoder_r_U=np.zeros((4, 5))),
        r"'encoder_r_U' of .* shape \(4, 5\), and not \(4, 8\)",
    ),
    "a number is not finite": (lambda s: resave(s / "uni_skip.npz", encoder_bx=np.full(6, np.nan)), "not finite"),
    "an array is pickled": (lambda s: resave(s / "uni_skip.npz", encoder_b=np.array([None] * 12)), "'encoder_b' of"),
    "rows are too wide": (
        lambda s: original.save_object_array(s / "utable.npy", [np.zeros(6, np.float32)] * 15),
        "row 0: not 5 finite numbers",
    ),
    "there is another encoder": (
        lambda s: (s / "my_uni.npz").write_bytes((s / "uni_skip.npz").read_bytes()),
        "are both a uni-skip encoder",
    ),
    "there is no encoder": (lambda s: [(s / f"{n}_skip.npz").unlink() for n in ("uni", "bi")], "holds a skip-thoughts"),
}


@pytest.mark.parametrize("what", list(SPOILERS))
def test_wrong_files_are_told_in_a_sentence_and_leave_nothing(source, tmp_path, capsys, what):
    original.write_skip_thoughts(source)
    spoil, message = SPOILERS[what]
    spoil(source)
    output = tmp_path / "out"
    with pytest.raises(OriginalFileError, match=message):
        convert("skip-thoughts", [source], output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    assert convert_original.main(["skip-thoughts", "--source", str(source), "--output", str(output)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("decoder", {}, "holds a passage decoder"),
        ("joint-embedding", {}, "holds a joint embedding"),
        ("style", {}, "--encoder names"),
        ("skip-thoughts", {"encoder": "x"}, "--encoder names"),
        ("style", {"encoder": "nowhere"}, "No .npy file"),
    ],
)
def test_what_does_not_fit_the_kind(source, tmp_path, kind, arguments, message):
    original.write_skip_thoughts(source)
    with pytest.raises(OriginalFileError, match=message):
        convert(kind, [source], tmp_path / "out", **arguments)
    with pytest.raises(OriginalFileError, match="There is no file or folder"):
        convert("decoder", [tmp_path / "nowhere"], tmp_path / "out")


def test_decoder_without_its_dictionary(source, tmp_path):
    original.write_decoder(source, deep=False)
    (source / "romance_dictionary.pkl").unlink()
    with pytest.raises(OriginalFileError, match="needs its pickled dictionary"):
        convert("decoder", [source], tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(source, tmp_path):
    original.write_skip_thoughts(source)
    before = sorted(p.name for p in source.iterdir())
    with pytest.raises(OriginalFileError, match="is there already"):
        convert("skip-thoughts", [source], source)
    assert sorted(p.name for p in source.iterdir()) == before


def test_a_converted_folder_without_its_table_is_told(combine):
    (combine[1] / "uni_table.npy").unlink()
    encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained(combine[1])
    with pytest.raises(Exception, match="uni_table.npy .* convert the model again"):
        encoder.encode(["a dog"])


def test_the_projects_own_encoder_is_not_an_original(tmp_path, source, combine):
    tiny_encoder().save_pretrained(tmp_path / "own")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "own"), PictaleSkipThoughtsEncoder)
    np.save(source / "x_style.npy", np.zeros(14, np.float32))
    with pytest.raises(Exception, match="own"):
        convert("style", [source / "x_style.npy"], tmp_path / "styles", encoder=str(tmp_path / "own"))
