"""The 8-bit folder of a storyteller: what is written, that it loads, and that it is whole or not there."""

import json

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling.errors import ModelFolderError
from modeling.story_engine import StoryEngine
from modeling.story_network import StoryNetwork
from tests.tiny_storyteller import TEXTS, save_tiny_storyteller
from training import storyteller_export
from training.storyteller_export import GREEDY, Comparison, eight_bit, export, held_out_loss, main

ROW = {
    "style": "mystery",
    "register": "",
    "manner": "plain",
    "length": "short",
    "page": "",
    "captions": ["A pair of yellow shoes.", "A suitcase with red lining."],
    "seen": ["a dog runs on the beach"],
    "recalled": [],
    "title": "The Yellow Shoes",
    "story": "The shoes were not his. He left them there.",
    "kind": "one",
    "sentence": "",
    "next": "",
    "photo_source": "tests",
    "photo_id": "1",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_tiny_storyteller(tmp_path_factory.mktemp("runs") / "best")


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A data set of a few stories."""
    folder = tmp_path_factory.mktemp("stories")
    rows = Dataset.from_list([{**ROW, "photo_id": str(i), "title": f"The Shoes {i}"} for i in range(4)])
    for split in ("train", "validation"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_a_folder_is_written_and_compared(trained, stories, tmp_path):
    found = export(trained, tmp_path / "out", 3, stories)
    assert found.prompts == 3 and 0 <= found.equal <= 3 and 0.5 < found.agreement <= 1
    assert found.loss == pytest.approx(found.full_loss, rel=0.01)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.int8
    assert weights["model.embed_tokens.weight"].dtype == torch.int8 and "lm_head.weight" not in weights
    assert weights["model.embed_tokens.weight_scale"].shape[1] == 1
    assert weights["model.norm.weight"].dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_engine_writes_the_same_from_a_copy_of_the_weights_turned_back(trained, tmp_path):
    export(trained, tmp_path / "out", 0)
    full = load_file(tmp_path / "out" / "model.safetensors")
    plain = {
        name: (weight.float() * full[f"{name}_scale"].float() if f"{name}_scale" in full else weight.float())
        for name, weight in full.items()
        if not name.endswith("_scale")
    }
    other = save_tiny_storyteller(tmp_path / "plain")
    save_file(plain, other / "model.safetensors", {"format": "pt"})
    texts = []
    for folder in (tmp_path / "out", other):
        engine = StoryEngine.load(folder, precision="float32")
        with engine.open(TEXTS[0]) as state:
            texts.append(state.write(sampling=GREEDY, max_tokens=30, allow_end=False).result())
        engine.close()
    assert texts[0] == texts[1]


def test_transformers_loads_the_folder(trained, tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers turns tied embeddings of 8 bits back from 5.23 on")
    export(trained, tmp_path / "out", 0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    engine = StoryEngine.load(tmp_path / "out", precision="float32")
    ids = torch.tensor([engine.encode(TEXTS[1])])
    told = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    with engine.open(TEXTS[1]) as state:
        (found,) = state.write(sampling=GREEDY, max_tokens=20).result()
    engine.close()
    assert tuple(told[0, ids.size(1) :].tolist())[: len(found.ids)] == found.ids
    assert model.dtype == torch.float32 and model.lm_head.weight is model.model.embed_tokens.weight


def test_large_weights_are_written_in_several_files(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(storyteller_export, "SHARD", "50KB")
    export(trained, tmp_path / "out", 0)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1 and (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert StoryNetwork.load(tmp_path / "out").vocabulary == StoryNetwork.load(trained).vocabulary


def test_a_folder_is_replaced_but_for_what_people_wrote(trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("card")
    (out / "stale.safetensors").write_text("old")
    export(trained, out, 0)
    assert (out / "README.md").read_text() == "card" and not (out / "stale.safetensors").exists()


def test_nothing_is_written_if_it_fails_on_the_way(trained, stories, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("card")

    def poor(*_):
        return Comparison(3, 0, 0.1, 3.0, 2.0)

    monkeypatch.setattr(storyteller_export, "compare", poor)
    with pytest.raises(ModelFolderError, match="too much is lost"):
        export(trained, out, 3, stories)
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert main([str(trained), "--output", str(tmp_path / "new"), "--prompts", "3", "--stories", stories]) == 1
    assert "too much is lost" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_sources_that_are_no_trained_storyteller(trained, tmp_path):
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        export(tmp_path, tmp_path / "out", 0)
    with pytest.raises(ModelFolderError, match="not finite"):
        eight_bit({"a.weight": torch.full((2, 2), torch.nan)}, tied=True)
    biased = save_tiny_storyteller(tmp_path / "biased", attention_bias=True)
    with pytest.raises(ModelFolderError, match="plain Llama"):
        export(biased, tmp_path / "out", 0)
    (biased / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"no tokenizer\.json"):
        export(biased, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_weights_without_ties_stay_apart(tmp_path):
    place = save_tiny_storyteller(tmp_path / "untied", tie_word_embeddings=False)
    export(place, tmp_path / "out", 0)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["lm_head.weight"].dtype == torch.bfloat16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    example = {"prompt": [5, 6, 7], "answer": [8, 9, 1]}
    losses = [held_out_loss(StoryNetwork.load(p, precision="float32"), [example])[0] for p in (place, tmp_path / "out")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_command_says_what_it_wrote(trained, stories, tmp_path, capsys):
    arguments = [str(trained), "--output", str(tmp_path / "out"), "--prompts", "2", "--stories", stories]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "MiB of weights" in told and "of 2 texts the same" in told
