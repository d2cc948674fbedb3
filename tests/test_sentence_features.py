"""`SentenceVectorizer` in scikit-learn's own tools, and without them."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling import ModelFolderError
from modeling.errors import TextError
from modeling.sentence_features import SentenceVectorizer
from tests.tiny import tiny_decoder, tiny_encoder, tiny_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
TEXTS = ["the dog runs on the beach", "she said the lady", "the red cat sleeps", "a dog in the sea", "he said", "a cat"]
LABELS = [0, 1, 0, 0, 1, 0]


@pytest.fixture
def folder(tmp_path):
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_vectors_are_the_encoders(folder):
    vectorizer = SentenceVectorizer(folder)
    expected = tiny_encoder().encode(TEXTS, tiny_tokenizer())
    np.testing.assert_allclose(vectorizer.fit(TEXTS).transform(np.array(TEXTS)), expected, atol=1e-6)
    np.testing.assert_allclose(vectorizer.fit_transform(iter(TEXTS)), expected, atol=1e-6)
    lengths = np.linalg.norm(vectorizer.set_params(normalize=False).transform(TEXTS), axis=1)
    assert np.abs(lengths - 1).max() > 0.01
    assert vectorizer.n_features_out_ == len(vectorizer.get_feature_names_out()) == 24


def test_a_pipeline_is_fitted_cloned_searched_and_pickled(folder):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline, make_union

    pipeline = make_pipeline(SentenceVectorizer(str(folder)), LogisticRegression(C=1000))
    predicted = pipeline.fit(TEXTS, LABELS).predict(TEXTS)
    assert predicted.tolist() == LABELS
    assert clone(pipeline).fit(TEXTS, LABELS).predict(TEXTS).tolist() == LABELS
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.predict(TEXTS).tolist() == LABELS
    grid = {"sentencevectorizer__normalize": [True, False], "logisticregression__C": [1.0, 1000.0]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert set(search.best_params_) == set(grid)
    union = make_union(SentenceVectorizer(folder), SentenceVectorizer(folder, normalize=False))
    assert union.fit_transform(TEXTS).shape == (6, 48)
    assert "SentenceVectorizer" in repr(pipeline) and pipeline._repr_html_()


def test_an_encoder_may_be_given_itself():
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_tokenizer()
    vectorizer = SentenceVectorizer(encoder)
    np.testing.assert_array_equal(vectorizer.transform(TEXTS), encoder.encode(TEXTS))
    np.testing.assert_array_equal(copy.deepcopy(vectorizer).transform(TEXTS), encoder.encode(TEXTS))


def test_weights_are_not_part_of_a_pickle(folder):
    vectorizer = SentenceVectorizer(str(folder)).fit(TEXTS)
    assert len(pickle.dumps(vectorizer)) < 2000


@pytest.mark.parametrize("wrong", ["one text", [1, 2], [["a", "b"]], [None]])
def test_what_is_no_list_of_texts_is_refused(folder, wrong):
    with pytest.raises(TextError, match="one for each sample"):
        SentenceVectorizer(folder).fit(wrong)


def test_models_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(ModelFolderError, match="no config.json"):
        SentenceVectorizer(tmp_path).fit(TEXTS)
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    with pytest.raises(ModelFolderError):
        SentenceVectorizer(tmp_path / "decoder").fit(TEXTS)
    with pytest.raises(ValueError, match="no parameter 'size'"):
        SentenceVectorizer().set_params(size=3)


def test_scikit_learn_is_optional(folder):
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from modeling.sentence_features import SentenceVectorizer\n"
        f"print(SentenceVectorizer({str(folder)!r}).fit_transform(['a dog']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "(1, 24)"


def test_the_example_of_the_readme_runs():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    block = next(b for b in blocks if "SentenceVectorizer" in b)
    if not (REPOSITORY / "hub_configs" / "skip-thoughts-books" / "model.safetensors").is_file():
        pytest.skip("there is no embedded encoder in this tree")
    names: dict = {}
    exec(block.replace('"hub_configs/', f'"{REPOSITORY}/hub_configs/'), names)
    assert names["pipeline"].predict(["The picture was a joy."]).shape == (1,)
