"""Publishing: what is refused, and the way there and back through a server that speaks the Hub's protocol."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from modeling import StoryPipeline
from modeling.errors import ModelFolderError
from modeling.pipeline_files import commit_folder
from tests.conftest import REPOSITORY
from tests.support.hub_server import TOKEN, running_hub
from tests.tiny import BOOK, save_tiny_pipeline, tiny_pipeline
from training.model_card import FIGURES_FILE, add_reports, fingerprint, first_card, read_figures
from training.push_to_hub import main, problems, stage

REPORT = {"dataset": "flickr8k", "split": "test", "num_beams": 3, "bleu_4": 20.74, "cider": 52.61, "meteor": None}
REPORT |= {"command": "python -m training.evaluate_captioner --model runs/best --dataset flickr8k --split test"}


@pytest.fixture
def folder(tmp_path):
    """A trained captioner's folder, as training leaves it."""
    save_tiny_pipeline(tmp_path)
    return tmp_path / "tiny-captioner"


@pytest.fixture
def staged(folder, tmp_path):
    stage(folder, tmp_path / "staged", "someone/tiny", "mit")
    return tmp_path / "staged"


def test_a_folder_is_completed(folder, staged):
    assert problems(staged, 2**20) == []
    config = json.loads((staged / "config.json").read_text())
    assert "image-captioning" in config["custom_pipelines"]
    assert {"pipeline_captioning.py", "processing_captioner.py", "README.md"} <= {p.name for p in staged.iterdir()}
    assert not (folder / "README.md").exists()  # what is published is a copy
    card = ModelCard.load(staged / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "transformers",
        "image-to-text",
    )
    assert 'model="someone/tiny"' in card.text and "None were measured" in card.text


def test_figures_become_a_model_index(folder, staged):
    add_reports(staged, [REPORT])
    add_reports(staged, [REPORT | {"cider": 53.0}])  # measured again: in place of the first
    card = ModelCard.load(staged / "README.md")
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == {"BLEU-4": 20.74, "CIDEr": 53.0}
    assert "| **beam 3** | 20.7 | 53.0 |" in card.text and "None were measured" not in card.text
    assert "| **beam 3** | 20.7 | 53.0 |" in first_card(staged, "someone/tiny", "mit")
    assert problems(staged, 2**20) == []
    weights = load_file(staged / "model.safetensors")
    before = fingerprint(staged)
    save_file(
        {name: w + 1 if w.is_floating_point() else w for name, w in weights.items()}, staged / "model.safetensors"
    )
    assert fingerprint(staged) != before
    with pytest.raises(ModelFolderError, match="other weights"):
        read_figures(staged)
    assert any("other weights" in problem for problem in problems(staged, 2**20))
    add_reports(staged, [REPORT])
    assert len(read_figures(staged)) == 1  # those of the old weights are gone
    (staged / FIGURES_FILE).write_text("[{}]")
    with pytest.raises(ModelFolderError, match="damaged"):
        read_figures(staged)


def archive_with(name):
    """A zip file, as torch.save writes them."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, b"content")
    return data.getvalue()


def array_of(dtype):
    data = io.BytesIO()
    np.save(data, np.zeros(3, dtype=dtype), allow_pickle=True)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("optimizer.pt", b"weights", "optimizer.pt may run code"),
        ("state", b"\x80\x04\x95rest", "state may run code"),
        ("states", archive_with("run/data.pkl"), "states may run code"),
        ("table.npy", array_of(object), "table.npy may run code"),
        ("code.py", b"TOKEN = 'hf_" + b"a" * 34 + b"'", "code.py holds an access token"),
        ("recipe.json", b'{"data": "/home/rosa/photos"}', "recipe.json names a path of this machine, /home/rosa"),
        ("notes.txt", b"C:\\Users\\rosa", "notes.txt names a path of this machine"),
        ("notes.md", b"token hf_" + b"a" * 34, "notes.md holds an access token"),
        ("large.csv", b"1," * 700_000, "more than 1: leave out what nobody needs (the largest is large.csv)"),
        ("README.md", b"# A model", "The card lacks `license`"),
        ("README.md", b"---\nlicense: [\n---\n# A model", "front matter of README.md cannot be read"),
    ],
)
def test_what_is_refused(staged, name, content, said):
    (staged / name).write_bytes(content)
    found = problems(staged, 2**20)
    assert len(found) == 1 and said in found[0]


def test_what_only_looks_like_a_pickle(staged):
    (staged / "style.safetensors").write_bytes(b"\x80\x02" + bytes(6) + b" " * 640)  # a header of 640 bytes
    (staged / "table.npy").write_bytes(array_of(np.float32))
    (staged / "texts.zip").write_bytes(archive_with("texts.txt"))
    assert problems(staged, 2**20) == []


def test_addresses_are_no_paths(staged):
    (staged / "notes.md").write_text("https://example.org/home/x and ~/.cache/x, hub_configs/tmp/x, a/var/b")
    assert problems(staged, 2**20) == []


def test_errors_are_one_sentence(folder, tmp_path, capsys):
    def said(*args):
        assert main([str(arg) for arg in args]) == 2
        return capsys.readouterr().err

    assert "There is no folder" in said(tmp_path / "nothing", "--repo-id", "a/b")
    assert "not a Hub id" in said(folder, "--repo-id", "tiny")
    assert "name a --license" in said(folder, "--repo-id", "a/b")
    config = (folder / "config.json").read_text()
    for damaged in ("{", "[]"):
        (folder / "config.json").write_text(damaged)
        assert "configuration file" in said(folder, "--repo-id", "a/b", "--license", "mit")
    (folder / "config.json").write_text(config)
    (folder / "README.md").write_text("---\nlicense: [\n---\n# A model")
    assert "front matter of README.md cannot be read" in said(folder, "--repo-id", "a/b")
    (folder / "README.md").unlink()
    (folder / "preprocessor_config.json").unlink()
    said_last = said(folder, "--repo-id", "a/b", "--license", "mit", "--dry-run")
    assert "does not work where this package is not" in said_last and said_last.count("\n") == 1
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in said(folder, "--repo-id", "a/b", "--license", "mit")


def test_no_connection_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "notes.md").write_text("text")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("modeling.pipeline_files.HfApi", lambda token: HfApi("http://127.0.0.1:9", token="hf_none"))
    with pytest.raises(ModelFolderError, match="The Hub did not take 'a/b' .*check the name, the connection") as error:
        commit_folder(tmp_path, "a/b", "a message")
    assert "\n" not in str(error.value)


PUSH = """
    import json, sys
    import torch
    from safetensors.torch import load_file, save_file
    from tests.tiny import tiny_pipeline
    from training.push_to_hub import main

    assert main(["tiny-captioner", "--repo-id", "someone/tiny", "--license", "mit", "--private"]) == 0
    weights = load_file("tiny-captioner/model.safetensors")
    torch.manual_seed(9)
    weights["vocabulary.bias"] = torch.randn_like(weights["vocabulary.bias"])
    save_file(weights, "tiny-captioner/model.safetensors", {"format": "pt"})
    assert main(["tiny-captioner", "--repo-id", "someone/tiny", "--license", "mit", "--message", "better"]) == 0
    done = tiny_pipeline().push_to_hub("someone/whole", create_pr=False)
    proposed = tiny_pipeline().push_to_hub("someone/whole", create_pr=True, commit_message="a proposal")
    print(json.dumps({"whole": done.oid, "pr": proposed.pr_url}))
"""

LOAD = """
    import importlib.util, json, sys
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    assert importlib.util.find_spec("modeling") is None
    first, = sys.argv[1:]
    photo = Image.linear_gradient("L").convert("RGB")
    found = {}
    for name, revision in (("main", None), ("first", first)):
        model = AutoModelForImageTextToText.from_pretrained("someone/tiny", revision=revision, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained("someone/tiny", revision=revision, trust_remote_code=True)
        found[name] = model.eval().generate(**processor(images=photo)).tolist()
        found[f"{name} bias"] = model.vocabulary.bias.sum().item()
    found["caption"] = pipeline("image-captioning", model="someone/tiny", trust_remote_code=True)(photo)
    told = pipeline("image-to-story", model="someone/whole", trust_remote_code=True)(photo, style="romance", seed=3)
    found |= {"story": told["story"], "title": told["title"]}
    print(json.dumps(found))
"""

PARTS = """
    import json, os
    from PIL import Image
    from modeling import PictaleError, StoryPipeline

    photo = Image.linear_gradient("L").convert("RGB")
    found = {"parts": StoryPipeline.from_pretrained("someone/parts", cache_dir="cache")(photo, seed=3).story}
    again = StoryPipeline.from_pretrained("someone/parts", cache_dir="cache", local_files_only=True, dtype="float32",
                                          device_map={"captioner": "cpu"})
    found["local"] = again(photo, seed=3).story
    for name, options in {
        "someone/nothing": {}, "someone/parts": {"revision": "v9"}, "someone/lost": {}, "someone/mute": {},
        "someone/tiny": {"token": False}, "someone/whole": {"local_files_only": True},
    }.items():
        try:
            StoryPipeline.from_pretrained(name, cache_dir="cache", **options)
        except PictaleError as error:
            found[name + str(options)] = str(error)
    print(json.dumps(found))
"""


def run(program, place, hub, *args, package):
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    settings |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HOME": str(place / ("home" if package else "other-home")), "HF_HUB_DISABLE_TELEMETRY": "1"}
    if package:
        settings["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *args],
        cwd=place,
        env=settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_there_and_back(tmp_path):
    """Push, load by name elsewhere, push again, load both revisions; whole pipelines; parts in several repositories."""
    from PIL import Image

    save_tiny_pipeline(tmp_path)
    kept = shutil.copytree(tmp_path / "tiny-captioner", tmp_path / "kept")
    photo = Image.linear_gradient("L").convert("RGB")
    with running_hub() as hub:
        pushed = run(PUSH, tmp_path, hub, package=True)
        tiny, whole = hub.repositories["someone/tiny"], hub.repositories["someone/whole"]
        assert tiny.private and not whole.private
        assert tiny.messages == ["initial commit", "Upload tiny", "better"]  # one commit each
        assert whole.messages[1:] == ["Upload story pipeline", "a proposal"] and "/discussions/" in pushed["pr"]
        assert whole.refs["main"] == pushed["whole"]
        assert sum(request.startswith("PUT") for request in hub.requests) >= 3
        _, first, second = tiny.commits
        changed = {path for path, file in tiny.commits[second].items() if file != tiny.commits[first].get(path)}
        assert changed == {"model.safetensors"}

        found = run(LOAD, tmp_path, hub, first, package=False)
        before, after = (load_file(f / "model.safetensors") for f in (kept, tmp_path / "tiny-captioner"))
        assert found["first bias"] == pytest.approx(before["vocabulary.bias"].sum().item(), abs=1e-4)
        assert found["main bias"] == pytest.approx(after["vocabulary.bias"].sum().item(), abs=1e-4)
        assert found["first"] != found["main"] and found["caption"][0]["generated_text"]
        expected = tiny_pipeline()(photo, style="romance", seed=3)
        assert (found["story"], found["title"]) == (expected.story, expected.title)

        publish(hub, "someone/tiny-encoder", tmp_path / "tiny-encoder")
        publish(hub, "someone/tiny-decoder", tmp_path / "tiny-decoder")
        publish(hub, "someone/tiny-storyteller", tmp_path / "tiny-storyteller")
        pipeline = tmp_path / "tiny-pipeline" / "pipeline.json"
        description = json.loads(pipeline.read_text())
        components = {"captioner": f"someone/tiny@{first}", "encoder": "someone/tiny-encoder"}
        components |= {part: f"someone/tiny-{part}" for part in ("decoder", "storyteller")}
        pipeline.write_text(json.dumps(description | {"components": components}))
        publish(hub, "someone/parts", tmp_path / "tiny-pipeline")
        pipeline.write_text(json.dumps(description | {"components": components | {"decoder": "someone/elsewhere"}}))
        publish(hub, "someone/lost", tmp_path / "tiny-pipeline")
        pipeline.write_text(json.dumps(description | {"components": components | {"storyteller": "someone/gone"}}))
        publish(hub, "someone/mute", tmp_path / "tiny-pipeline")
        (tmp_path / "away").mkdir()
        found = run(PARTS, tmp_path / "away", hub, package=True)
    expected = StoryPipeline.from_pretrained(local_parts(tmp_path, kept))(photo, seed=3).story
    assert found.pop("parts") == found.pop("local") == expected
    said = "\n".join(found.values())
    assert "Cannot get the pipeline 'someone/nothing' from the Hub: there is none of that name" in said
    assert "it has no revision 'v9'" in said
    assert "Cannot get the decoder 'someone/elsewhere' from the Hub" in said
    assert "Cannot get the storyteller 'someone/gone' from the Hub" in said
    assert "Cannot get the pipeline 'someone/tiny' from the Hub: there is none of that name, or it is private" in said
    assert "run `hf download someone/whole --revision main` once" in said
    assert len(found) == 6 and not any("\n" in message for message in found.values())


def publish(hub, name, folder):
    """Put a folder on the server without the client."""
    from tests.support.hub_server import File, Repository

    files = {p.relative_to(folder).as_posix(): File(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}
    hub.repositories[name] = Repository()
    hub.repositories[name].add_commit(files, "everything", "main")


def local_parts(place, captioner):
    """The pipeline with its first captioner, all beside each other."""
    shutil.rmtree(place / "tiny-captioner")
    captioner.rename(place / "tiny-captioner")
    pipeline = place / "tiny-pipeline" / "pipeline.json"
    components = {part: f"pictale/tiny-{part}" for part in ("captioner", "encoder", "decoder", "storyteller")}
    pipeline.write_text(json.dumps(json.loads(pipeline.read_text()) | {"components": components}))
    return place / "tiny-pipeline"


def test_save_pretrained_keeps_everything(tmp_path):
    from PIL import Image

    pipe, photo = tiny_pipeline(), Image.linear_gradient("L").convert("RGB")
    pipe.save_pretrained(tmp_path / "saved")
    again = StoryPipeline.from_pretrained(shutil.move(tmp_path / "saved", tmp_path / "moved"))
    assert again.options == pipe.options and list(again.styles) == list(pipe.styles)
    one, other = again(photo, seed=1), pipe(photo, seed=1)
    assert (one.story, one.title) == (other.story, other.title)
    placed = StoryPipeline.from_pretrained(tmp_path / "moved", device_map={"storyteller": "cpu", "captioner": "cpu"})
    assert placed(photo, seed=1).story == other.story
    with pytest.raises(ModelFolderError, match="is a file"):
        pipe.save_pretrained(tmp_path / "moved" / "pipeline.json")
    with pytest.raises(ModelFolderError, match="not a Hub id"):
        pipe.push_to_hub("no id")
    half = StoryPipeline.from_pretrained(tmp_path / "moved", dtype="bfloat16")
    assert {p.dtype for part in (half.encoder, half.decoder) for p in part.parameters()} == {torch.bfloat16}
    half.add_style(half.make_style(BOOK, "mine"))
    half.save_pretrained(tmp_path / "half")
    assert "mine" in StoryPipeline.from_pretrained(tmp_path / "half").styles  # in float32 again, the same encoder
    for wrong in ({"dtype": "float31"}, {"device": "cpu", "device_map": "cpu"}, {"device_map": {"writer": "cpu"}}):
        with pytest.raises(ModelFolderError):
            StoryPipeline.from_pretrained(tmp_path / "moved", **wrong)
