"""Words beyond the vocabulary: the fit, the files, and the encoder that uses them."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling import DataError, ModelFolderError, PictaleSkipThoughtsEncoder, RecipeError
from modeling.errors import TextError
from modeling.tokenization import build_bpe_tokenizer
from modeling.vocabulary_expansion import TABLE_FILE, WORDS_FILE, VocabularyExpansion
from tests.conftest import REPOSITORY
from tests.tiny import WORDS, tiny_encoder, tiny_tokenizer
from training.expand_vocabulary import expand_vocabulary, fit_linear_map, fit_to_encoder, main
from training.sentence_baselines import untrained_twin
from training.sentence_vectors import sentence_vectors

WIDTH = 6
# known words in a cased spelling, new ones, and what is no single word or comes twice
FILE_WORDS = [w.upper() if w == "dog" else w for w in WORDS] + "Kayak kayak New_York well-known café 42 _ Zebra".split()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny_encoder(encoder_type="bi").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def word_vectors(path, words=FILE_WORDS):
    """A file made by a linear map of the encoder's own vectors, so that the fit must find the way back."""
    encoder, tokenizer = tiny_encoder(encoder_type="bi"), tiny_tokenizer()
    rng = np.random.default_rng(0)
    table = encoder.words.embed(torch.arange(encoder.config.vocab_size)).detach().numpy() @ rng.normal(size=(16, WIDTH))
    ids = [tokenizer.convert_tokens_to_ids(w.lower()) for w in words]
    vectors = [table[i] + 1 if i != 3 else rng.normal(size=WIDTH) for i in ids]
    np.savez(path, words=np.array(words), vectors=np.array(vectors, dtype=np.float32))
    return path


def test_the_fit_is_ordinary_least_squares_with_an_intercept():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(40, 5)), rng.normal(-1, 1, size=(40, 7))
    fitted = fit_linear_map(x, y)
    expected, left, *_ = np.linalg.lstsq(np.hstack([x, np.ones((40, 1))]), y, rcond=None)
    np.testing.assert_allclose(fitted.weight, expected[:5], rtol=1e-10)
    np.testing.assert_allclose(fitted.bias, expected[5], rtol=1e-10)
    assert fitted.explained == pytest.approx(1 - left.sum() / ((y - y.mean(0)) ** 2).sum())
    exact = fit_linear_map(x, x @ rng.normal(size=(5, 3)) + 2)
    assert exact.explained == pytest.approx(1) and exact.shared == 40
    with pytest.raises(DataError, match="Only 6 words"):
        fit_linear_map(x[:6], y[:6])


def test_unknown_words_get_the_mapped_vectors_and_known_ones_keep_theirs(model, tmp_path):
    path, output = word_vectors(tmp_path / "vectors.npz"), tmp_path / "expanded"
    plain = PictaleSkipThoughtsEncoder.from_pretrained(model)
    report = expand_vocabulary(model, path, output)
    assert (report.words, report.shared) == (4, len(WORDS))
    assert (output / WORDS_FILE).read_text().split() == ["kayak", "café", "42", "zebra"]

    encoder = PictaleSkipThoughtsEncoder.from_pretrained(output)
    stored = np.load(path)
    x = np.hstack([stored["vectors"].astype(np.float64), np.ones((len(FILE_WORDS), 1))])
    known = [i for i, w in enumerate(FILE_WORDS) if w.lower() in tiny_tokenizer().get_vocab()]
    y = [plain.words.embed(torch.tensor(tiny_tokenizer().convert_tokens_to_ids(FILE_WORDS[i].lower()))) for i in known]
    weight = np.linalg.lstsq(x[known], torch.stack(y).detach().numpy().astype(np.float64), rcond=None)[0]
    rows = [FILE_WORDS.index(w) for w in ("Kayak", "café", "42", "Zebra")]
    np.testing.assert_allclose(encoder.expansion.vectors, x[rows] @ weight, atol=2e-3, rtol=1e-3)

    with torch.no_grad():  # the thought with the unknown word's vector put in by hand
        ids = torch.tensor([tiny_tokenizer()("the kayak runs .").input_ids])
        words = plain.words.embed(ids)
        words[0, 2] = torch.from_numpy(np.array(encoder.expansion.vectors[0], dtype=np.float32))
        expected = torch.cat([plain.gru(words)[1][0], plain.reverse_gru(words.flip(1))[1][0]], -1)[0]
    np.testing.assert_allclose(encoder.encode(["The Kayak runs."], normalize=False)[0], expected, atol=1e-6)
    known_only = ["the dog runs on the beach.", "", "no such submarine."]
    np.testing.assert_array_equal(encoder.encode(known_only), plain.encode(known_only))
    sentences = ["a kayak", "a zebra", "café , kayak and " + "zebra " * 100, "the dog"]
    together = encoder.encode(sentences)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([s]) for s in sentences]), atol=1e-6)
    assert np.abs(together - plain.encode(sentences)).max(1)[:3].min() > 1e-3
    encoder.expand(None)
    np.testing.assert_array_equal(encoder.encode(sentences), plain.encode(sentences))


def test_words_of_the_expansion_are_searched_and_searched_for(model, tmp_path):
    path = word_vectors(tmp_path / "vectors.npz")
    expand_vocabulary(model, path, tmp_path / "expanded")
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "expanded")
    size = encoder.config.vocab_size
    with torch.no_grad():
        table = encoder.words.embed(torch.arange(4, size)).numpy()
    table = np.concatenate([table, encoder.expansion.vectors.astype(np.float32)])
    names = tiny_tokenizer().convert_ids_to_tokens(range(4, size)) + ["kayak", "café", "42", "zebra"]
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    for word in ("kayak", "dog"):
        order = np.argsort(-(table @ table[names.index(word)]))
        found = encoder.nearest_words([word], k=len(names))[0]
        assert [n.text for n in found] == [names[i] for i in order if names[i] != word]
    with pytest.raises(TextError, match="'submarine'"):
        encoder.nearest_words(["submarine"])


def test_baselines_of_an_expanded_encoder(model, tmp_path):
    expand_vocabulary(model, word_vectors(tmp_path / "vectors.npz"), model)
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(model)
    twin = untrained_twin(encoder, 0)
    assert twin.encode(["a kayak"]).shape == (1, 24) and twin.expansion is None and encoder.expansion is not None
    with torch.no_grad():
        dog = encoder.words.embed(torch.tensor(tiny_tokenizer().convert_tokens_to_ids("dog"))).numpy()
    expected = (dog + encoder.expansion.vectors[encoder.expansion.row("kayak")]) / 2
    means = encoder.mean_word_vectors(["dog kayak", ""])
    np.testing.assert_allclose(means[0], expected, atol=1e-6)
    assert not means[1].any()


def test_the_table_stays_on_disk_through_copies_pickles_and_saving(model, tmp_path):
    path = word_vectors(tmp_path / "vectors.npz")
    expand_vocabulary(model, path, tmp_path / "expanded", words=2)
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "expanded")
    assert len(encoder.expansion) == 2
    for table in (encoder.expansion, copy.deepcopy(encoder).expansion, pickle.loads(pickle.dumps(encoder.expansion))):
        assert all(isinstance(a, np.memmap) for a in (table.vectors, table.text, table.offsets, table.order))
    encoder.save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    again = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(["a kayak"]), encoder.encode(["a kayak"]))
    assert again.expansion.folder == tmp_path / "saved"


def test_opening_a_large_table_reads_nothing_of_it(tmp_path):
    size, width = 120_000, 400  # 92 MiB of vectors

    def blocks():
        for start in range(0, size, 10_000):
            yield [f"w{i}" for i in range(start, start + 10_000)], np.full((10_000, width), start / 10_000, np.float16)

    VocabularyExpansion.write(tmp_path, blocks(), "none", "a test")
    program = f"""
import resource, sys
import numpy, safetensors
sys.path.insert(0, {str(REPOSITORY)!r})
from modeling.vocabulary_expansion import VocabularyExpansion
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
table = VocabularyExpansion.load({str(tmp_path)!r})
rows = [table.row(f"w{{i}}") for i in range(0, {size}, 1000)]
assert rows == list(range(0, {size}, 1000)) and table.row("w-1") is None
assert (table.vectors[rows[50]] == 5).all() and table.word(77) == "w77"
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr[-2000:]
    grown = float(run.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert grown < 30, f"{grown} MiB"


def test_damaged_or_foreign_expansions_are_one_sentence(model, tmp_path):
    path = word_vectors(tmp_path / "vectors.npz")
    expanded = tmp_path / "expanded"
    expand_vocabulary(model, path, expanded)
    other = tiny_encoder(seed=1, encoder_type="bi")
    with pytest.raises(ModelFolderError, match="another encoder"):
        other.expand(expanded)
    with pytest.raises(ModelFolderError, match="expansion.safetensors"):
        VocabularyExpansion.load(model)
    table, words = (expanded / TABLE_FILE).read_bytes(), (expanded / WORDS_FILE).read_bytes()
    (expanded / WORDS_FILE).write_bytes(words.replace(b"zebra", b"horse"))
    with pytest.raises(ModelFolderError, match="does not belong"):
        PictaleSkipThoughtsEncoder.from_pretrained(expanded).encode(["a zebra"])
    (expanded / WORDS_FILE).write_bytes(words)
    (expanded / TABLE_FILE).write_bytes(table[:-5])
    with pytest.raises(ModelFolderError, match="damaged"):
        VocabularyExpansion.load(expanded)
    (expanded / TABLE_FILE).unlink()
    with pytest.raises(ModelFolderError, match="not there"):
        PictaleSkipThoughtsEncoder.from_pretrained(expanded).encode(["a zebra"])


def test_what_cannot_be_expanded_says_so_and_leaves_nothing(model, tmp_path):
    path = word_vectors(tmp_path / "vectors.npz")
    with pytest.raises(RecipeError, match="1 or more, not 0"):
        expand_vocabulary(model, path, tmp_path / "out", words=0)
    with pytest.raises(RecipeError, match="is there already"):
        expand_vocabulary(model, path, tmp_path)
    with pytest.raises(DataError, match="holds no word that the vocabulary lacks"):
        expand_vocabulary(model, word_vectors(tmp_path / "known.npz", WORDS), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = sorted(p.name for p in model.iterdir())
    with pytest.raises(DataError, match="lacks"):
        expand_vocabulary(model, tmp_path / "known.npz", model)
    assert sorted(p.name for p in model.iterdir()) == before
    with pytest.raises(DataError, match="float16"):
        VocabularyExpansion.write(tmp_path, [(["big"], np.full((1, 3), 1e6))], "none", "a test")
    with pytest.raises(DataError, match="line break"):
        VocabularyExpansion.write(tmp_path, [(["a\nb"], np.zeros((1, 3)))], "none", "a test")
    assert not list(tmp_path.glob("expansion.*"))
    words = build_bpe_tokenizer(["the dog runs", "the cat"], 30)
    words.save_pretrained(model)
    with pytest.raises(RecipeError, match="byte-pair"):
        expand_vocabulary(model, path, tmp_path / "out")


def test_a_model_is_expanded_in_its_own_folder_and_again(model, tmp_path):
    (model / "more").mkdir()
    path = word_vectors(tmp_path / "vectors.npz")
    expand_vocabulary(model, path, model, words=1)
    assert expand_vocabulary(model, path, model).words == 4
    assert json.loads((model / "config.json").read_text())["vocabulary_expansion"] is True
    assert (model / "more").is_dir() and not list(model.glob("*.writing"))
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(model)
    assert encoder.expansion.encoder == encoder.fingerprint()
    assert fit_to_encoder(encoder, path).shared == len(WORDS)


def test_the_command_line_shows_neighbours_and_says_errors_in_one_line(model, tmp_path, monkeypatch, capsys):
    path = word_vectors(tmp_path / "vectors.npz")
    command = ["expand_vocabulary", "--model", str(model), "--word-vectors", str(path), "--output", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", [*command, "--show", "kayak", "--json"])
    main()
    told = json.loads(capsys.readouterr().out)
    assert told["words"] == 4 and len(told["neighbours"]["kayak"]) == 5
    with pytest.raises(SystemExit, match=r"^expand_vocabulary: .* is there already: choose a new folder"):
        main()


def test_cached_sentence_vectors_know_the_expansion(model, tmp_path):
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(model)
    plain = np.array(sentence_vectors(encoder, encoder.tokenizer, ["a kayak"], str(tmp_path / "cache")))
    expand_vocabulary(model, word_vectors(tmp_path / "vectors.npz"), model)
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(model)
    expanded = sentence_vectors(encoder, encoder.tokenizer, ["a kayak"], str(tmp_path / "cache"))
    assert np.abs(plain - expanded).max() > 1e-3
