"""The tiny models of hub_configs/ are what `python -m training.make_tiny` makes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from training.make_tiny import ABOUT, build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    for name in ABOUT:
        (root / name).mkdir()
        (root / name / "recipe.json").write_text((REPOSITORY / "hub_configs" / name / "recipe.json").read_text())
    build(root)
    return root


@pytest.mark.parametrize("name", ABOUT)
def test_the_same_command_makes_the_same_model(built, name):
    published = REPOSITORY / "hub_configs" / name
    assert {path.name for path in (built / name).iterdir()} == {path.name for path in published.iterdir()}
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (built / name, published))
    # orthogonal matrices differ in the last digit with the number of threads
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)
    for path in published.glob("*.json"):
        made = json.loads((built / name / path.name).read_text())
        kept = json.loads(path.read_text())
        if path.name.endswith("config.json"):
            for config in (made, kept):
                for key in ("transformers_version", "fingerprint", "backbone_fingerprint"):  # these know the last digit
                    config.pop(key, None)
        assert made == kept, path.name
    assert (published / "README.md").read_text() == (built / name / "README.md").read_text()
    assert "random-weights" in (published / "README.md").read_text()


def test_they_are_small():
    folders = [REPOSITORY / "hub_configs" / name for name in ABOUT]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 700_000
