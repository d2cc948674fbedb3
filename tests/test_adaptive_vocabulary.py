"""The tied adaptive vocabulary is a probability distribution, and its loss is its log-probability."""

import pytest
import torch

from modeling.adaptive_vocabulary import AdaptiveVocabulary


@pytest.fixture(params=[None, 5, 12, 40])
def words(request):
    torch.manual_seed(0)
    layer = AdaptiveVocabulary(20, 16, cutoff=request.param)
    layer.reset_parameters(0.7)
    return layer


def test_probabilities_sum_to_one(words):
    log_probs = words.log_probs(torch.randn(3, 4, 16))
    assert log_probs.shape == (3, 4, 20)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 4))


def test_loss_is_the_negative_log_probability(words):
    hidden, targets = torch.randn(50, 16), torch.randint(0, 20, (50,))
    expected = -words.log_probs(hidden).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(words.loss(hidden, targets), expected)


def test_embedding_looks_each_word_up_in_its_table(words):
    ids = torch.arange(20).view(4, 5)
    vectors = words.embed(ids)
    assert vectors.shape == (4, 5, 16)
    assert vectors[0, 0].abs().sum() == 0  # padding
    torch.testing.assert_close(vectors[0, 1], words.head.weight[1])
    if words.has_tail:
        torch.testing.assert_close(vectors[3, 4], words.tail_projection(words.tail.weight[-1]))


def test_frequent_and_rare_words_both_learn(words):
    hidden, targets = torch.randn(40, 16), torch.arange(40) % 20
    words.loss(hidden, targets).sum().backward()
    assert words.head.weight.grad.abs().sum(1).gt(0).all()
    if words.has_tail:
        assert words.tail.weight.grad.abs().sum(1).gt(0).all()
