"""The joint embedding equals its equations, keeps through saving, and knows whose features it takes."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from modeling import (
    ImageError,
    ModelFolderError,
    PictaleCaptionerForConditionalGeneration,
    PictaleJointEmbedding,
    PictaleJointEmbeddingConfig,
)
from modeling.fingerprints import backbone_fingerprint, encoder_fingerprint
from tests.tiny import tiny_captioner, tiny_embedding, tiny_encoder, tiny_tokenizer

TEXTS = ["A dog runs.", "the old lady sleeps in the red house", "Beach!", "a cat, on the beach; said the dog"]


@pytest.fixture(scope="module")
def captioner():
    return tiny_captioner().prepare_for_inference()


@pytest.fixture(scope="module")
def model(captioner):
    return tiny_embedding(captioner)


@pytest.fixture(scope="module")
def features():
    return torch.rand(3, 4, 64, generator=torch.Generator().manual_seed(0))


def written_out_image(model, regions):
    p = dict(model.named_parameters())
    parts = [regions.mean(0)]
    for w in p["pooling.scores.weight"]:
        alpha = (regions @ w).softmax(0)
        parts.append(sum(a * r for a, r in zip(alpha, regions, strict=True)))
    pooled = torch.cat(parts)
    pooled = pooled / pooled.norm() * regions.shape[1] ** 0.5
    v = p["image.weight"] @ pooled + p["image.bias"]
    return v / v.norm()


def written_out_text(model, ids):
    p = dict(model.named_parameters())
    h = torch.zeros(model.config.hidden_size)
    for i in ids:
        x = p["gru.weight_ih_l0"] @ p["words.weight"][i] + p["gru.bias_ih_l0"]
        y = p["gru.weight_hh_l0"] @ h + p["gru.bias_hh_l0"]
        (rx, zx, nx), (ry, zy, ny) = x.chunk(3), y.chunk(3)
        z = (zx + zy).sigmoid()
        h = (1 - z) * (nx + (rx + ry).sigmoid() * ny).tanh() + z * h
    s = p["sentence.weight"] @ h + p["sentence.bias"]
    return s / s.norm()


def test_vectors_are_those_of_the_equations(model, features):
    images, texts = model.embed_images(features), model.embed_texts(TEXTS)
    for regions, vector in zip(features, images, strict=True):
        np.testing.assert_allclose(vector, written_out_image(model, regions).detach(), atol=1e-5)
    for text, vector in zip(TEXTS, texts, strict=True):
        ids = model.tokenizer(text.lower().strip("!.").replace(",", "").replace(";", "")).input_ids
        np.testing.assert_allclose(vector, written_out_text(model, ids).detach(), atol=1e-5)
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(model.similarity(images, texts), images @ texts.T)


def test_a_batch_is_its_singles_and_forward_is_embed(model, features):
    together, texts = model.embed_images(features), model.embed_texts(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([model.embed_images(f[None]) for f in features]), atol=1e-6)
    np.testing.assert_allclose(texts, np.concatenate([model.embed_texts([t]) for t in TEXTS]), atol=1e-6)
    encoded = model.tokenizer([t.lower().strip("!.") for t in TEXTS[:3]], padding=True, return_tensors="pt")
    output = model(features, encoded.input_ids, encoded.attention_mask)
    np.testing.assert_allclose(output.image_embeds.detach(), together, atol=1e-6)
    np.testing.assert_allclose(output.text_embeds.detach(), texts[:3], atol=1e-6)
    assert model.embed_texts([]).shape == (0, 6)


@pytest.mark.parametrize("pooling, parts", [("mean", 1), ("attention", 2), ("both", 3)])
def test_what_is_pooled(pooling, parts, features):
    model = PictaleJointEmbedding(PictaleJointEmbeddingConfig(64, image_pooling=pooling, vocab_size=9)).eval()
    assert model.pooling.size == 64 * parts and model.image.in_features == 64 * parts
    shuffled = features[:, torch.randperm(4)]  # regions have no order
    np.testing.assert_allclose(model.embed_images(features), model.embed_images(shuffled), atol=1e-6)


def test_training_drops_words_and_evaluation_does_not(captioner, features):
    model = tiny_embedding(captioner)
    ids = torch.tensor([[1, 8, 9, 10, 2]] * 64)
    model.train()
    one, other = (model(input_ids=ids).text_embeds for _ in range(2))
    assert not torch.allclose(one, other)
    before = model.embed_texts(TEXTS)
    assert model.training  # left as it was
    model.eval()
    np.testing.assert_array_equal(before, model.embed_texts(TEXTS))


def test_saving_keeps_every_vector(model, features, tmp_path):
    model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is PictaleJointEmbedding and len(AutoTokenizer.from_pretrained(tmp_path)) == len(again.tokenizer)
    np.testing.assert_array_equal(again.embed_images(features), model.embed_images(features))
    np.testing.assert_array_equal(again.embed_texts(TEXTS), model.embed_texts(TEXTS))
    assert again.fingerprint() == model.fingerprint() != tiny_embedding(tiny_captioner(), seed=1).fingerprint()


def test_pixels_go_through_the_captioners_backbone(captioner, model):
    pixels = torch.rand(2, 3, 64, 64)
    looking = tiny_embedding(captioner).look_through(captioner)
    expected = looking.embed_images(captioner.encoder.extract(pixels))
    np.testing.assert_array_equal(looking.embed_images(pixel_values=pixels), expected)
    assert not any("backbone" in name for name in looking.state_dict())
    with pytest.raises(ImageError, match="look_through"):
        model.embed_images(pixel_values=pixels)


def test_another_backbone_is_refused_in_one_sentence(captioner):
    model, other = tiny_embedding(captioner), tiny_captioner(seed=1)
    with pytest.raises(ModelFolderError, match=r"another backbone .*train_joint_embedding") as error:
        model.look_through(other)
    assert "\n" not in str(error.value)
    half = tiny_captioner().half().float()  # a folder of float16 weights holds the same backbone
    assert backbone_fingerprint(half.encoder.backbone) == backbone_fingerprint(captioner.encoder.backbone)
    with torch.no_grad():
        weight = half.encoder.backbone.stem.conv.weight
        weight.flatten()[0] = 0.0
        before = backbone_fingerprint(half.encoder.backbone)
        weight.flatten()[0] = -0.0  # as rounding to float16 leaves what was below zero
    assert backbone_fingerprint(half.encoder.backbone) == before != backbone_fingerprint(captioner.encoder.backbone)
    model.look_through(tiny_captioner().half().float())


def test_a_captioner_and_its_embedding_belong_together_in_bfloat16(captioner, tmp_path):
    model = tiny_embedding(captioner)
    for name, part in (("captioner", captioner), ("embedding", model)):
        part.save_pretrained(tmp_path / name)
    eyes = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "captioner", dtype=torch.bfloat16)
    rounded = PictaleJointEmbedding.from_pretrained(tmp_path / "embedding", dtype=torch.bfloat16)
    assert rounded.fingerprint() == model.fingerprint()
    vectors = rounded.look_through(eyes).embed_images(pixel_values=torch.rand(2, 3, 64, 64))
    assert vectors.shape == (2, 6) and rounded.dtype == eyes.dtype == torch.bfloat16


def test_a_frozen_skip_thought_encoder_can_be_the_reader(captioner, features):
    encoder = tiny_encoder()
    settings = {"hidden_size": encoder.config.hidden_size, "encoder_fingerprint": encoder_fingerprint(encoder)}
    config = PictaleJointEmbeddingConfig(64, sentence_encoder="skip-thoughts", **settings)
    model = PictaleJointEmbedding(config).eval()
    with pytest.raises(ModelFolderError, match="read_with"):
        model.embed_texts(TEXTS)
    encoder.tokenizer = tiny_tokenizer()
    model.read_with(encoder)
    thoughts = torch.from_numpy(encoder.encode(["a dog runs", "beach"]))
    expected = torch.nn.functional.normalize(model.sentence(thoughts), dim=-1).detach()
    np.testing.assert_allclose(model.embed_texts(["A dog runs.", "Beach!"]), expected, atol=1e-5)
    model(input_ids=torch.tensor([[1, 8, 2]])).text_embeds.sum().backward()
    assert all(p.grad is None for p in encoder.parameters()) and model.sentence.weight.grad is not None
    with pytest.raises(ModelFolderError, match="another skip-thought encoder"):
        model.read_with(tiny_encoder(seed=1))


def test_features_of_another_shape_are_refused(model):
    for wrong in (np.zeros((2, 64), np.float32), np.zeros((2, 4, 32), np.float32)):
        with pytest.raises(ImageError, match="regions of 64 numbers"):
            model.embed_images(wrong)
    with pytest.raises(TypeError, match="list"):
        model.embed_texts("A dog.")
    with pytest.raises(ModelFolderError, match="sentence_encoder"):
        PictaleJointEmbeddingConfig(sentence_encoder="lstm")
    with pytest.raises(ModelFolderError, match="image_pooling"):
        PictaleJointEmbeddingConfig(image_pooling="max")
