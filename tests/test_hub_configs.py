"""The folders of hub_configs/ are complete and say the same as the code beside them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from modeling import PictaleSkipThoughtsEncoder
from tests.conftest import REPOSITORY
from training.sync_code import differing

FOLDERS = sorted((REPOSITORY / "hub_configs").iterdir())
WITH_WEIGHTS = [folder for folder in FOLDERS if (folder / "model.safetensors").exists()]


def test_code_in_the_folders_is_the_code_of_the_package():
    assert not differing(REPOSITORY / "hub_configs"), "run: python -m training.sync_code"


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "recipe.json").exists()], ids=lambda f: f.name)
def test_recipes_are_read_and_name_no_machine(folder):
    from training.recipes import read_recipe
    from training.train_captioner import CaptionerRecipe
    from training.train_skip_thoughts import SkipThoughtsRecipe
    from training.train_story_decoder import StoryRecipe

    kinds = {"captioner": CaptionerRecipe, "skip-thoughts": SkipThoughtsRecipe, "story-decoder": StoryRecipe}
    kind = next(cls for part, cls in kinds.items() if part in folder.name)
    for path in folder.glob("recipe*.json"):
        read_recipe(path, kind)
        assert '"/' not in path.read_text()


@pytest.mark.parametrize("folder", WITH_WEIGHTS, ids=lambda f: f.name)
def test_weights_are_halves_with_a_card(folder):
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert all(file.get_slice(name).get_dtype() in ("F16", "I64") for name in file.keys())  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "license:" in card and "## Limits" in card


@pytest.mark.skipif(not WITH_WEIGHTS, reason="no weights in this tree")
@pytest.mark.parametrize("folder", WITH_WEIGHTS, ids=lambda f: f.name)
def test_a_folder_loads_where_this_repository_is_not(folder, tmp_path):
    """With Auto classes and the folder's own code, in a process that cannot import `modeling`."""
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    auto = next(name for name in auto_map if name != "AutoConfig")
    program = f"""
import sys, importlib.util, transformers
assert importlib.util.find_spec("modeling") is None
model = transformers.{auto}.from_pretrained("copy", trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained("copy")
print(type(model).__name__, sum(p.numel() for p in model.parameters()), len(tokenizer))
if hasattr(model, "encode"):
    model.encode(["A dog runs."]).tofile("vector")
else:
    assert model.generation_config.suppress_tokens
if "captioner" in model.config.model_type:
    processor = transformers.AutoImageProcessor.from_pretrained("copy", trust_remote_code=True)
    assert processor.size["height"] == 224
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads((folder / "config.json").read_text())["architectures"][0] in run.stdout
    if (tmp_path / "vector").exists():
        expected = PictaleSkipThoughtsEncoder.from_pretrained(folder).encode(["A dog runs."])[0]
        np.testing.assert_allclose(np.fromfile(tmp_path / "vector", np.float32), expected, atol=1e-6)


def test_the_captioners_recipes_are_a_chain():
    from training.recipes import read_recipe
    from training.train_captioner import CaptionerRecipe

    folder = REPOSITORY / "hub_configs" / "captioner-flickr8k"
    first, tuned, rewarded = (
        read_recipe(folder / name, CaptionerRecipe)
        for name in ("recipe.json", "recipe-finetune.json", "recipe-scst.json")
    )
    assert first.initial is None and first.self_critical is None
    assert tuned.initial == f"{first.training.output_dir}/best" and tuned.model["freeze_backbone"] is False
    assert rewarded.initial == f"{tuned.training.output_dir}/best" and rewarded.self_critical.samples > 1
    for recipe in (first, tuned, rewarded):  # what the next one learns from is what the evaluation found best
        assert recipe.training.metric == "cider" and recipe.training.greater_is_better
        assert recipe.data.train == first.data.train and recipe.data.validation == first.data.validation
