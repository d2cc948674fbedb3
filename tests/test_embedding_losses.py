"""The losses equal loops over pairs, alone and gathered from several processes; ranks equal a count."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from modeling.errors import RecipeError
from training.embedding_losses import EmbeddingLoss, EmbeddingLossOptions
from training.retrieval_metrics import ranks, recalls, retrieval_scores

OWNER = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def vectors(seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(4, 5, generator=rng, dtype=dtype), torch.randn(7, 5, generator=rng, dtype=dtype)
    return torch.nn.functional.normalize(images, dim=-1), torch.nn.functional.normalize(texts, dim=-1)


def loop(kind, images, texts, owner, margin=0.2, temperature=0.07):
    total = 0.0
    for r, i in enumerate(owner.tolist()):
        right = float(images[i] @ texts[r])
        wrong_texts = [float(images[i] @ texts[q]) for q in range(len(texts)) if owner[q] != i]
        wrong_images = [float(images[j] @ texts[r]) for j in range(len(images)) if j != i]
        if kind == "infonce":
            for wrong in (wrong_texts, wrong_images):
                scores = [math.exp(s / temperature) for s in (right, *wrong)]
                total -= math.log(scores[0] / sum(scores)) / 2
        else:
            costs = [[max(0.0, margin - right + s) for s in wrong] for wrong in (wrong_texts, wrong_images)]
            total += sum(map(sum if kind == "sum" else max, costs))
    return total / len(owner)


@pytest.mark.parametrize("kind", ["sum", "hardest", "infonce"])
def test_losses_are_the_loop(kind):
    images, texts = vectors()
    loss = EmbeddingLoss(EmbeddingLossOptions(kind=kind))
    assert float(loss(images, texts, OWNER)) == pytest.approx(loop(kind, images, texts, OWNER), rel=1e-5)
    perfect = torch.eye(4)
    assert float(loss(perfect, perfect, torch.arange(4)).detach()) < 1e-4


def test_the_temperature_is_learned_and_bounded():
    loss = EmbeddingLoss(EmbeddingLossOptions(temperature=0.02))
    loss(*vectors(dtype=torch.float32), OWNER).backward()
    assert loss.log_scale.grad is not None and float(loss.scale) == pytest.approx(50)
    loss.log_scale.data.fill_(20.0)
    assert float(loss.scale) == 100
    for wrong in ({"kind": "triplet"}, {"margin": -1}, {"temperature": 0.0}):
        with pytest.raises(RecipeError):
            EmbeddingLossOptions(**wrong)


def in_one_of_two(rank, kind, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    images, texts = vectors(dtype=torch.float32)
    mine, rows = (slice(0, 1), slice(0, 2)) if rank == 0 else (slice(1, 4), slice(2, 7))  # of different sizes
    images, texts = images[mine].requires_grad_(), texts[rows].requires_grad_()
    loss = EmbeddingLoss(EmbeddingLossOptions(kind=kind))(images, texts, OWNER[rows] - (0 if rank == 0 else 1))
    loss.backward()
    torch.save((loss.detach(), images.grad, texts.grad), f"{path}/{kind}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.parametrize("kind", ["hardest", "infonce"])
def test_negatives_come_from_all_processes(kind, tmp_path):
    images, texts = (v.requires_grad_() for v in vectors(dtype=torch.float32))
    loss = EmbeddingLoss(EmbeddingLossOptions(kind=kind))(images, texts, OWNER)
    loss.backward()
    mp.spawn(in_one_of_two, (kind, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in (0, 1)]
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
    # the launcher takes the mean of the processes' gradients of the parameters: each gives twice its rows' share
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, images.grad)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]) / 2, texts.grad)


def test_ranks_are_a_count():
    images, texts = (v.numpy().astype(np.float32) for v in vectors(3))
    owner = OWNER.numpy()
    to_text, to_image = ranks(images, texts, owner, block=3)
    scores = images @ texts.T
    for i in range(4):
        order = np.argsort(-scores[i])
        assert to_text[i] == 1 + next(place for place, r in enumerate(order) if owner[r] == i)
    for r in range(7):
        assert to_image[r] == 1 + list(np.argsort(-scores[:, r])).index(owner[r])


def test_equal_scores_do_not_count_as_found():
    images = texts = np.ones((5, 2), np.float32) / 2**0.5
    assert set(ranks(images, texts, np.arange(5))[0]) == {5}
    assert retrieval_scores(images, texts, range(5))["to_text_r1"] == 0


def test_recalls_and_their_sum():
    assert recalls(np.array([1, 2, 6, 11])) == {"r1": 25, "r5": 50, "r10": 75, "median_rank": 4}
    scores = retrieval_scores(np.eye(12, dtype=np.float32), np.eye(12, dtype=np.float32), range(12))
    assert scores["rsum"] == 600 and scores["to_image_median_rank"] == 1
