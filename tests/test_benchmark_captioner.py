"""The benchmark compares like with like: the textbook loop has the captioner's loss and gradients."""

import copy
import json

import pytest
import torch

from modeling.errors import PictaleError
from tests.captioners import NO_DROPOUT, make_model
from training import benchmark_captioner
from training.benchmark_captioner import LENGTHS, TextbookCaptioner, benchmark, make_batch


@pytest.mark.parametrize("attention", ["bahdanau", "dot"])
@pytest.mark.parametrize("regions_at_each_step", [False, True])
def test_textbook_loop_is_the_same_model(attention, regions_at_each_step):
    changes = {"attention_type": attention, "tie_word_embeddings": regions_at_each_step}
    model = make_model(**NO_DROPOUT, **changes).train()
    textbook = TextbookCaptioner(copy.deepcopy(model), regions_at_each_step).train()
    batch = make_batch(model.config, 24, photos=3, captions=2, seed=0)
    ours, theirs = model(**batch).loss, textbook(**batch)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    for name in ("projection", "keys"):
        shared = getattr(model.encoder, name).weight.grad, getattr(textbook, name).weight.grad
        torch.testing.assert_close(*shared, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(model.embedding.weight.grad, textbook.embedding.weight.grad, atol=1e-5, rtol=1e-3)
    state = model.decoder.state_projection.weight.grad.split(model.decoder.splits)
    for ours, theirs in zip(state, (textbook.cell.weight_hh, textbook.query.weight, textbook.gate.weight), strict=True):
        torch.testing.assert_close(ours, theirs.grad, atol=1e-5, rtol=1e-3)


def test_batches_are_captions_of_flickr8ks_lengths():
    batch = make_batch(make_model().config, 24, photos=300, captions=5, seed=0)
    lengths = (batch["labels"] >= 0).sum(1).float()
    mean = sum(n * count for n, count in LENGTHS.items()) / sum(LENGTHS.values())
    assert abs(lengths.mean() - mean) < 0.5 and lengths.max() <= 23
    assert batch["region_features"].shape == (300, 4, 24) and batch["region_features"].dtype == torch.float16
    assert batch["image_index"].bincount().eq(5).all()


def test_figures(tmp_path, capsys, monkeypatch):
    figures = benchmark(make_model(), batch_size=2, captions=2, rounds=1)
    assert all(figures[name] > 0 for name in ("pictale_captions_per_s", "keys_captions_per_s", "ratio_regions"))
    expected = figures["pictale_captions_per_s"] / figures["keys_captions_per_s"]
    assert figures["ratio"] == pytest.approx(expected)
    make_model().config.save_pretrained(tmp_path)
    arguments = ["--model", str(tmp_path), "--batch-size", "1", "--rounds", "1", "--json"]
    assert benchmark_captioner.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] > 0
    assert benchmark_captioner.main(["--model", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_options_the_textbook_loop_lacks_are_refused():
    with pytest.raises(PictaleError, match="attention_mode"):
        TextbookCaptioner(make_model(attention_mode="hard"))
