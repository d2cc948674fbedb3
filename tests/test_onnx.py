"""The exported captioner says what the captioner says. Needs onnx, onnxscript and onnxruntime."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling.errors import ModelFolderError
from modeling.onnx_captioner import OnnxCaptioner
from tests.tiny import save_tiny_pipeline, tiny_captioner

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed")

ROWS = torch.arange(3).repeat_interleave(2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A pipeline's folder whose captioner has been exported."""
    from training.export_onnx import export

    place = tmp_path_factory.mktemp("onnx")
    pipeline = save_tiny_pipeline(place)
    export(place / "tiny-captioner")
    return pipeline


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(3)
    return torch.randn(3, 3, 64, 64)


@pytest.mark.parametrize("search", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}])
def test_it_captions_as_the_captioner(exported, pixels, search):
    model = tiny_captioner().prepare_for_inference()
    graphs = OnnxCaptioner.from_pretrained(exported.parent / "tiny-captioner" / "onnx")
    expected = model.generate(pixel_values=pixels, **search)
    assert torch.equal(graphs.generate(pixel_values=pixels, **search), expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1
    if len(expected) == len(ROWS):
        scores = model.score(expected, encoder_outputs=model.encoder(pixels), image_index=ROWS)
        again = graphs.score(expected, encoder_outputs=graphs.encoder(pixels), image_index=ROWS)
        for a, b in zip(scores, again, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_it_serves_in_a_pipeline(exported, capsys):
    from PIL import Image

    from modeling import StoryPipeline
    from modeling.__main__ import main

    photo = Image.linear_gradient("L").convert("RGB")
    pipe = StoryPipeline.from_pretrained(exported)
    expected = pipe(photo, seed=1)
    pipe.use_onnx()
    assert isinstance(pipe.captioner, OnnxCaptioner)
    got = pipe([photo, photo], seed=1)[1]
    assert [c.text for c in got.captions] == [c.text for c in expected.captions] and got.story == expected.story
    assert got.captions[0].attention.shape == expected.captions[0].attention.shape
    photo.save(exported / "photo.png")
    assert main([str(exported / "photo.png"), "--model", str(exported), "--seed", "1", "--json", "--onnx"]) == 0
    assert json.loads(capsys.readouterr().out)["story"] == expected.story


def test_errors_are_one_sentence(exported, tmp_path):
    from modeling import StoryPipeline

    place = shutil.copytree(exported.parent, tmp_path / "copy")
    pipe = StoryPipeline.from_pretrained(place / "tiny-pipeline")
    captioner = place / "tiny-captioner"
    with pytest.raises(ModelFolderError, match="training.export_onnx"):
        pipe.use_onnx(tmp_path)
    pipe.use_onnx()
    with pytest.raises(ModelFolderError, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe = StoryPipeline.from_pretrained(place / "tiny-pipeline")
    weights = load_file(captioner / "model.safetensors")
    weights["vocabulary.bias"] += 1
    save_file(weights, captioner / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFolderError, match="other weights"):
        pipe.use_onnx()
    (captioner / "onnx" / "decoder_step.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFolderError, match="decoder_step.onnx is missing or damaged"):
        OnnxCaptioner.from_pretrained(captioner / "onnx")
    shutil.copy(captioner / "onnx" / "encoder.onnx", captioner / "onnx" / "decoder_step.onnx")
    (captioner / "onnx" / "onnx.json").write_text('{"grid": 3}')
    with pytest.raises(ModelFolderError, match=r"onnx is damaged \(TypeError\): export it again"):
        OnnxCaptioner.from_pretrained(captioner / "onnx")


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    from training import export_onnx

    captioner = save_tiny_pipeline(tmp_path).parent / "tiny-captioner"
    before = sorted(path.name for path in captioner.iterdir())

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(export_onnx, "_write", fail)
    with pytest.raises(ModelFolderError, match="cannot be said in ONNX: RuntimeError"):
        export_onnx.export(captioner)
    assert sorted(path.name for path in captioner.iterdir()) == before
