"""Self-critical sequence training: learning from the CIDEr-D of one's own captions.

Rennie et al. (arXiv:1612.00563). For a photograph, k captions w_1..w_k are sampled and each is made more likely or less
as its reward r_i is above or below a baseline b_i:

    loss = - sum_i (r_i - b_i) sum_t log p(w_it | w_i<t) / (words in all samples)
    b_i = reward of the greedy caption                      "greedy", the paper
    b_i = mean of the other samples' rewards                "mean" (Luo, arXiv:2003.09971), with less variance

What the paper found to matter is kept: the end of a caption is a word of the reward and of the loss (appendix E). A
caption that was cut off at `max_words` has no end, and earns less.

Samples and gradient are always of the same distribution: the ids that `generate` suppresses are barred in both, and
dropout is off in both or on in both with the same masks. Dropout in the gradient alone would learn from the samples of
another model. Which is better depends on the data: the trainers of language models turn it off (TRL's RLOO, the same
estimator), ruotianluo/self-critical.pytorch samples with it; on a few thousand photographs it keeps the model from
learning them by heart. The masks are the same because the gradient goes through the sampling itself; a second pass over
finished samples, packed like the cross entropy's, was measured to take a sixth longer.

Shapes: B photographs, k samples, R = B * k rows, T words, M words in all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from modeling.captioner_encoder import CaptionerEncoderOutput
from modeling.errors import RecipeError
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from modeling.words import split_words

from .cider_reward import END, CiderReward
from .data_captions import CaptionExamples, collate

BASELINES = ("mean", "greedy")
Scorer = Callable[[list[int], torch.Tensor], torch.Tensor]


@dataclass
class SelfCriticalOptions:
    """The `self_critical` section of a captioner's recipe.

    Args:
        samples: captions sampled for each photograph, k; with the baseline "mean" at least 2.
        baseline: what a sample's reward is compared with, one of `BASELINES`.
        max_words: a sample is cut off here; its end counts as a word.
        xe_weight: share of the cross entropy of the data set's captions in the loss, from 0 to 1.
        dropout: sample with dropout on, and learn through the same masks.
    """

    samples: int = 5
    baseline: str = "mean"
    max_words: int = 20
    xe_weight: float = 0.0
    dropout: bool = False

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise RecipeError(f"baseline '{self.baseline}' is not known; use one of: {', '.join(BASELINES)}.")
        if self.samples < (2 if self.baseline == "mean" else 1):
            raise RecipeError("self_critical.samples must be at least 2 with the baseline mean, else 1.")
        if not 0 <= self.xe_weight <= 1:
            raise RecipeError(f"self_critical.xe_weight is {self.xe_weight}; choose a share from 0 to 1.")


def draw(logits: torch.Tensor) -> torch.LongTensor:
    """A word [R] from each row's softmax [R, V] by its cumulative sum; on a CPU much faster than `multinomial`."""
    sums = logits.softmax(-1).cumsum(-1)  # [R, V]
    points = torch.rand(len(sums), 1, device=sums.device) * sums[:, -1:]  # a barred word is an empty interval
    return torch.searchsorted(sums, points, right=True).squeeze(1).clamp_max(sums.shape[1] - 1)


def sample_captions(
    model: PictaleCaptionerForConditionalGeneration,
    encoder_outputs: CaptionerEncoderOutput,
    samples: int,
    max_words: int,
    barred: Sequence[int] = (),
    greedy: bool = False,
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """Captions of each photograph from the model in the mode it is in, without `generate`'s overhead.

    Rows whose caption has ended are dropped from the batch as soon as that saves more than the copy costs.

    Returns:
        Words and the end id, then -100: [R, T], the samples of a photograph one after another; the log-probability of
        each real word [M], with a graph unless under `no_grad`, and its row [M].
    """
    config, device = model.config, encoder_outputs.last_hidden_state.device
    rows = torch.arange(len(encoder_outputs.last_hidden_state), device=device).repeat_interleave(samples)  # [R]
    state, regions, keys = model.expand(encoder_outputs, rows)
    captions = torch.full((len(rows), max_words), IGNORE_INDEX, device=device)
    barred_ids = torch.tensor(list(barred), device=device, dtype=torch.long)
    words = torch.full_like(rows, config.decoder_start_token_id)
    rows, running = torch.arange(len(rows), device=device), torch.ones_like(rows, dtype=torch.bool)
    log_probs, owners = [], []
    for step in range(max_words):
        if (count := int(running.sum())) < 0.8 * len(rows):
            keep = running.nonzero().squeeze(1)
            rows, words, running = rows[keep], words[keep], running[keep]
            regions, keys = regions[keep], keys[keep]
            state.reorder_cache(keep)
        if not count:
            break
        encoded = CaptionerEncoderOutput(last_hidden_state=regions, attention_keys=keys)
        out = model(decoder_input_ids=words.unsqueeze(1), encoder_outputs=encoded, cache=state)
        state, logits = out.cache, out.logits[:, -1].float().index_fill(1, barred_ids, -torch.inf)  # [R, V]
        words = logits.detach().argmax(-1) if greedy else draw(logits.detach())  # [R]
        captions[rows[running], step] = words[running]
        log_probs.append(-nn.functional.cross_entropy(logits, words, reduction="none")[running])
        owners.append(rows[running])
        running = running & (words != config.eos_token_id)
    longest = int((captions != IGNORE_INDEX).sum(1).max())
    return captions[:, :longest], torch.cat(log_probs), torch.cat(owners)


def advantages(rewards: torch.Tensor, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """What each reward [B, k] is above its baseline: the greedy caption's reward [B], else the other samples' mean."""
    if greedy is not None:
        return rewards - greedy.unsqueeze(1)
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def caption_scorer(
    references: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, eos_token_id: int
) -> Scorer:
    """A function of photographs' numbers and captions [R, T] (ids, -100 after the end) that gives their CIDEr-D [R].

    Args:
        references: the normalised captions of each photograph; document frequencies come from these and nothing else.
    """
    reward = CiderReward([[[*split_words(text), END] for text in texts] for texts in references])

    def score(images: list[int], captions: torch.Tensor) -> torch.Tensor:
        ids = [[i for i in row if i != IGNORE_INDEX] for row in captions.tolist()]
        ends = [[END] if row and row[-1] == eos_token_id else [] for row in ids]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        words = [split_words(text, lowercase=True) + end for text, end in zip(texts, ends, strict=True)]
        return torch.from_numpy(reward(images, words).astype(np.float32)).to(captions.device)

    return score


@dataclass
class SelfCriticalOutput(ModelOutput):
    """`loss`, and in `report` the means of what the log shows: reward, baseline, sampled words of a caption."""

    loss: torch.Tensor | None = None
    report: dict[str, torch.Tensor] | None = None


class SelfCriticalCaptioner(nn.Module):
    """A captioner whose forward pass samples captions and returns the policy gradient loss, as the loop expects.

    Args:
        captioner: starts from weights trained by cross entropy.
        score: what `caption_scorer` returned.
        barred: ids never sampled; by default those that the captioner's `generate` suppresses.
    """

    def __init__(
        self,
        captioner: PictaleCaptionerForConditionalGeneration,
        score: Scorer,
        options: SelfCriticalOptions,
        barred: Sequence[int] | None = None,
    ):
        super().__init__()
        self.captioner, self.score, self.options = captioner, score, options
        self.barred = list((captioner.generation_config.suppress_tokens or []) if barred is None else barred)

    @torch.no_grad()
    def greedy_rewards(
        self, images: list[int], encoded: CaptionerEncoderOutput, inputs: dict[str, Any]
    ) -> torch.Tensor:
        """CIDEr-D [B] of what the captioner says without dropout."""
        model = self.captioner
        if was_training := model.training:
            model.eval()
            encoded = model.encoder(**inputs)
        captions, _, _ = sample_captions(model, encoded, 1, self.options.max_words, self.barred, greedy=True)
        model.train(was_training)
        return self.score(images, captions)

    def forward(
        self,
        rows: torch.LongTensor,
        labels: torch.LongTensor | None = None,
        image_index: torch.LongTensor | None = None,
        **inputs: Any,
    ) -> SelfCriticalOutput:
        """`rows` [B] are the numbers by which `score` knows the photographs in `inputs`; `labels` and `image_index`,
        their captions, are read only for `xe_weight`.
        """
        model, options = self.captioner, self.options
        model.train(self.training and options.dropout)
        encoded, images, k = model.encoder(**inputs), rows.tolist(), options.samples
        samples, log_probs, captions = sample_captions(model, encoded, k, options.max_words, self.barred)
        rewards = self.score([image for image in images for _ in range(k)], samples).view(-1, k)  # [B, k]
        greedy = self.greedy_rewards(images, encoded, inputs) if options.baseline == "greedy" else None
        gain = advantages(rewards, greedy)  # [B, k]
        loss = -(gain.flatten()[captions] * log_probs).mean()
        if options.xe_weight:
            truth = model.training_loss(encoded, model.shift_right(labels), labels, image_index)
            loss = (1 - options.xe_weight) * loss + options.xe_weight * truth
        report = {
            "reward": rewards.mean(),
            "baseline": (rewards - gain).mean(),
            "reward_spread": rewards.std(1).mean() if k > 1 else rewards.new_zeros(()),
            "words": torch.tensor(len(log_probs) / samples.shape[0]),
            "ended": (samples == model.config.eos_token_id).any(1).float().mean(),
        }
        return SelfCriticalOutput(loss=loss, report=report)


class NumberedExamples(torch.utils.data.Dataset):
    """`CaptionExamples` that tell their number too, by which the reward finds the references."""

    def __init__(self, examples: CaptionExamples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        return key[0], self.examples[key]

    @staticmethod
    def collate(numbered: Sequence[tuple[int, Any]], kind: str = "region_features") -> dict[str, torch.Tensor]:
        """`training.data_captions.collate` with the photographs' numbers `rows` [B]."""
        batch = collate([example for _, example in numbered], kind)
        return {**batch, "rows": torch.tensor([number for number, _ in numbered])}
