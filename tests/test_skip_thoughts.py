"""The sentence encoder and its pre-training model."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling import PictaleSkipThoughtsEncoder, PictaleSkipThoughtsForPreTraining
from tests.tiny import tiny_encoder, tiny_tokenizer

SENTENCES = [
    "the dog runs on the beach.",
    "she said",
    "",
    "the old lady of the house was in it, he said.",
    "a",
]


def test_padding_changes_nothing():
    encoder = tiny_encoder()
    ids = torch.tensor([[1, 7, 8, 2]])
    padded = torch.nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(encoder(ids).thought, encoder(padded).thought, rtol=0, atol=1e-6)


def test_batch_equals_singles_in_the_callers_order():
    encoder, tokenizer = tiny_encoder(), tiny_tokenizer()
    together = encoder.encode(SENTENCES, tokenizer, batch_size=2)
    alone = np.concatenate([encoder.encode([s], tokenizer) for s in SENTENCES])
    assert together.dtype == np.float32 and together.shape == (len(SENTENCES), 24)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_encode_edge_cases():
    encoder, tokenizer = tiny_encoder(), tiny_tokenizer()
    assert encoder.encode([], tokenizer).shape == (0, 24)
    long = "dog " * 500
    assert np.isfinite(encoder.encode([long], tokenizer)).all()
    with pytest.raises(TypeError, match="list"):
        encoder.encode("a sentence", tokenizer)


def test_encode_leaves_the_mode_as_it_was():
    encoder = tiny_encoder().train()
    encoder.encode(["a"], tiny_tokenizer())
    assert encoder.training


def test_save_and_load_give_the_same_vectors(tmp_path):
    encoder, tokenizer = tiny_encoder(), tiny_tokenizer()
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = encoder.encode(SENTENCES, tokenizer)
    for again in (
        PictaleSkipThoughtsEncoder.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        np.testing.assert_array_equal(again.encode(SENTENCES), expected)


def test_pretraining_loss_is_the_mean_over_real_tokens_only():
    torch.manual_seed(0)
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder().config).eval()
    ids, before, after = (torch.tensor([[1, 5, 6, 2]]), torch.tensor([[1, 9, 2]]), torch.tensor([[1, 8, 7, 6, 2]]))
    output = model(ids, before, after)
    pad = torch.nn.functional.pad
    padded = model(pad(ids, (0, 3)), pad(before, (0, 4)), pad(after, (0, 2)))
    torch.testing.assert_close(output.loss, padded.loss)
    torch.testing.assert_close(output.loss, output.previous_loss + output.next_loss)


def test_pretraining_learns_which_sentence_follows():
    torch.manual_seed(0)
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder().config).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    ids = torch.tensor([[1, 5, 2], [1, 6, 2]])
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(ids, previous_ids=ids.flip(0), next_ids=ids.flip(0)).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # two words to choose from at random would give 2 ln 2 over each pair of tokens


def test_pretraining_model_survives_saving(tmp_path):
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder().config).eval()
    model.save_pretrained(tmp_path)
    again = PictaleSkipThoughtsForPreTraining.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 5, 6, 2]])
    torch.testing.assert_close(again(ids, ids, ids).loss, model(ids, ids, ids).loss, rtol=0, atol=0)
