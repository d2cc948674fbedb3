"""The folders of hub_configs/ are complete and say the same as the code beside them."""

import json

import pytest
from safetensors import safe_open

from tests.conftest import REPOSITORY
from training.sync_code import differing

FOLDERS = sorted(path for path in (REPOSITORY / "hub_configs").iterdir() if path.is_dir())
WITH_WEIGHTS = [folder for folder in FOLDERS if (folder / "model.safetensors").exists()]


def test_code_in_the_folders_is_the_code_of_the_package():
    changed = [path for folder in FOLDERS for path in differing(folder)]
    assert not changed, "run: python -m training.sync_code"


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "recipe.json").exists()], ids=lambda f: f.name)
def test_recipes_are_read_and_name_no_machine(folder):
    from training.embedding_recipe import JointEmbeddingRecipe
    from training.recipes import read_recipe
    from training.self_train_storyteller import SelfTrainingRecipe
    from training.train_captioner import CaptionerRecipe
    from training.train_skip_thoughts import SkipThoughtsRecipe
    from training.train_story_decoder import StoryRecipe
    from training.train_storyteller import StorytellerRecipe

    kinds = {"captioner": CaptionerRecipe, "skip-thoughts": SkipThoughtsRecipe, "story-decoder": StoryRecipe}
    kinds |= {"joint-embedding": JointEmbeddingRecipe, "storyteller": StorytellerRecipe}
    kind = next(cls for part, cls in kinds.items() if part in folder.name)
    for path in folder.glob("recipe*.json"):
        read_recipe(path, SelfTrainingRecipe if path.name == "recipe-self.json" else kind)
        assert '"/' not in path.read_text()


@pytest.mark.parametrize("folder", WITH_WEIGHTS, ids=lambda f: f.name)
def test_weights_are_halves_with_a_card(folder):
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert all(file.get_slice(name).get_dtype() in ("F16", "I64") for name in file.keys())  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "license:" in card and "## Limits" in card


def test_the_captioners_recipes_are_a_chain():
    from training.recipes import read_recipe
    from training.train_captioner import CaptionerRecipe

    folder = REPOSITORY / "hub_configs" / "captioner-flickr8k"
    whole, first, tuned, rewarded = (
        read_recipe(folder / name, CaptionerRecipe)
        for name in ("recipe.json", "recipe-frozen.json", "recipe-finetune.json", "recipe-scst.json")
    )
    assert whole.initial is None and whole.contrastive is not None and whole.model["freeze_backbone"] is False
    assert first.initial is None and first.self_critical is None
    assert tuned.initial == f"{first.training.output_dir}/best" and tuned.model["freeze_backbone"] is False
    assert rewarded.initial == f"{tuned.training.output_dir}/best" and rewarded.self_critical.samples > 1
    for recipe in (whole, first, tuned, rewarded):  # what the next one learns from is what the evaluation found best
        assert recipe.training.metric == "cider" and recipe.training.greater_is_better
        assert recipe.data.train == first.data.train and recipe.data.validation == first.data.validation
