"""The sentence encoder and its pre-training model."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling import PictaleSkipThoughtsConfig, PictaleSkipThoughtsEncoder, PictaleSkipThoughtsForPreTraining
from modeling.configuration_skip_thoughts import ENCODER_TYPES
from modeling.errors import ModelFolderError, RecipeError
from tests.tiny import tiny_encoder, tiny_tokenizer
from training.train_skip_thoughts import start_from_word_vectors

SENTENCES = [
    "the dog runs on the beach.",
    "she said",
    "",
    "the old lady of the house was in it, he said.",
    "a",
]


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_padding_changes_nothing(kind):
    encoder = tiny_encoder(encoder_type=kind)
    ids = torch.tensor([[1, 7, 8, 2]])
    padded = torch.nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(encoder(ids).thought, encoder(padded).thought, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_thought_is_the_last_state_of_each_direction(kind):
    encoder = tiny_encoder(encoder_type=kind)
    ids, mixed = torch.tensor([[1, 7, 8, 9, 2]]), torch.tensor([[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]])
    with torch.no_grad():
        words = encoder.words.embed(ids)
        expected = [encoder.gru(words)[1][0]]
        if kind == "combine":
            expected.append(encoder.second_gru(words)[1][0])
        if kind != "uni":
            expected.append(encoder.reverse_gru(words.flip(1))[1][0])
        output = encoder(mixed)
    torch.testing.assert_close(output.thought[:1], torch.cat(expected, -1))
    assert output.last_hidden_state.shape == (2, 5, 24)
    if kind == "bi":  # the state of a word has read what follows it, backwards
        torch.testing.assert_close(output.last_hidden_state[:1, 0, 12:], expected[1])


def test_width_that_does_not_divide_is_refused():
    with pytest.raises(ModelFolderError, match="divide by 4"):
        PictaleSkipThoughtsConfig(encoder_type="combine", hidden_size=30)
    with pytest.raises(ModelFolderError, match="uni, bi, combine"):
        PictaleSkipThoughtsConfig(encoder_type="both")


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_batch_equals_singles_in_the_callers_order(kind):
    encoder, tokenizer = tiny_encoder(encoder_type=kind), tiny_tokenizer()
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


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_save_and_load_give_the_same_vectors(tmp_path, kind):
    encoder, tokenizer = tiny_encoder(encoder_type=kind), tiny_tokenizer()
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


def test_a_plain_output_layer_is_a_softmax_over_all_words():
    torch.manual_seed(0)
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder(output_layer="plain").config).eval()
    ids, before = torch.tensor([[1, 5, 20, 2]]), torch.tensor([[1, 9, 21, 2]])
    states = []
    model.previous_decoder.output.register_forward_hook(lambda module, inputs, output: states.append(output))
    loss = model(ids, before, ids).previous_loss
    logits = states[0] @ model.vocabulary.head.weight.t() + model.vocabulary.head_bias
    assert logits.shape == (3, model.config.vocab_size)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, before[0, 1:]))
    with pytest.raises(ModelFolderError, match="tied, plain"):
        PictaleSkipThoughtsConfig(output_layer="adaptive")


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
    torch.testing.assert_close(again(ids, ids, ids).loss, model(ids, ids, ids).loss, rtol=1e-6, atol=0)


def test_contrastive_loss_equals_a_loop_and_spares_equal_sentences():
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder(contrastive_weight=1.0, contrastive_size=8).config).eval()
    torch.manual_seed(1)
    thoughts, following = torch.randn(4, 24), torch.randn(4, 24)
    ids = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 7, 2]])  # rows 0 and 2 are followed by the same words
    losses = []
    for i in range(4):
        scores = [
            torch.cosine_similarity(model.query(thoughts[i]), model.candidate(following[j]), dim=0) / 0.1
            for j in range(4)
            if j == i or not torch.equal(ids[i], ids[j])
        ]
        right = scores[[j for j in range(4) if j == i or not torch.equal(ids[i], ids[j])].index(i)]
        losses.append(torch.stack(scores).logsumexp(0) - right)
    torch.testing.assert_close(model.contrastive_loss(thoughts, following, ids), torch.stack(losses).mean())


def test_contrastive_term_and_stride_enter_the_training_loss():
    model = PictaleSkipThoughtsForPreTraining(tiny_encoder(contrastive_weight=0.5, decoder_stride=2).config).train()
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2], [1, 9, 5, 2]])
    model.config.dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = model(ids, ids.flip(0), ids.roll(1, 0))
    parts = output.previous_loss + output.next_loss + 0.5 * output.contrastive_loss
    torch.testing.assert_close(output.loss, parts)
    seen = model.previous_decoder(output.thought[[0, 2]], ids.flip(0)[[0, 2]], model.encoder.words)
    torch.testing.assert_close(output.previous_loss, seen)


def test_word_vectors_fill_the_first_dimensions_of_frequent_and_rare_words():
    encoder = tiny_encoder(adaptive_tail_factor=2)
    words, before = encoder.words, encoder.words.embed(torch.arange(20)).clone()
    rng = np.random.default_rng(0)
    vectors, found = rng.normal(0, 3, (words.vocab_size, 8)).astype(np.float32), np.ones(words.vocab_size, bool)
    found[[5, 14]] = False
    start_from_word_vectors(words, vectors, found)
    table = words.embed(torch.arange(words.vocab_size)).detach()
    known = [i for i in range(4, words.vocab_size) if found[i]]
    torch.testing.assert_close(
        torch.nn.functional.normalize(table[known, :8], dim=-1),
        torch.nn.functional.normalize(torch.from_numpy(vectors[known]), dim=-1),
    )
    torch.testing.assert_close(table[5], before[5], rtol=0, atol=0)
    with pytest.raises(RecipeError, match="raise model.embedding_size"):
        start_from_word_vectors(words, np.zeros((words.vocab_size, 9), np.float32), found)
