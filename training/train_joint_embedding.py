"""Train the joint embedding of photographs and sentences.

    python -m training.train_joint_embedding hub_configs/joint-embedding-flickr8k/recipe.json
    python -m training.train_joint_embedding hub_configs/joint-embedding-flickr8k/recipe.json --resume
    python -m training.train_joint_embedding RECIPE.json --set captioner=FOLDER --set training.output_dir=runs/mine
    accelerate launch --multi_gpu --num_processes 4 -m training.train_joint_embedding RECIPE.json

It looks through the backbone of the captioner that the recipe names, frozen; the features are computed once into
`data.cache_dir`, where the captioner's training perhaps left them. A captioner with another backbone needs a joint
embedding of its own: the same command again. While training, the validation photographs and their captions look for
each other; the best weights by `rsum` lie in `<output_dir>/best`, a folder that `from_pretrained` loads. A caption bank
for it is made by `training.build_caption_bank`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.utils import ModelOutput
from transformers.utils.logging import disable_progress_bar

from modeling.caption_text import normalise_caption
from modeling.errors import DataError, PictaleError
from modeling.modeling_captioner import IGNORE_INDEX
from modeling.modeling_joint_embedding import PictaleJointEmbedding

from .caption_sources import CaptionSplit, read_captions, read_split
from .data_captions import CaptionExamples, EpochBatches, collate
from .embedding_losses import EmbeddingLoss, EmbeddingLossOptions
from .embedding_recipe import EmbeddingDataOptions, JointEmbeddingRecipe, build_embedding, load_eyes
from .feature_cache import FeatureCache
from .loop import TrainResult, prepare_output_dir, train
from .photo_sources import open_source
from .recipes import read_recipe, recipe_parser, write_recipe
from .retrieval_metrics import retrieval_scores

__all__ = ["EmbeddingDataOptions", "JointEmbeddingRecipe", "main", "run"]


@dataclass
class LossOutput(ModelOutput):
    """The loss of a batch, and figures of it by name."""

    loss: torch.FloatTensor | None = None
    report: dict[str, float | torch.Tensor] | None = None


class EmbeddingTraining(nn.Module):
    """What the loop trains: a joint embedding and its loss."""

    def __init__(self, embedding: PictaleJointEmbedding, options: EmbeddingLossOptions) -> None:
        super().__init__()
        self.embedding, self.sentence_weight = embedding, options.sentence_weight
        self.loss = EmbeddingLoss(options)

    def forward(
        self,
        region_features: torch.Tensor,
        labels: torch.LongTensor,
        image_index: torch.LongTensor,
        sentences: torch.LongTensor | None = None,
    ) -> LossOutput:
        """Loss of a batch.

        Args:
            region_features: [B, P, F].
            labels: captions without `<s>` [R, T], padded with -100; the photograph of each in image_index [R].
            sentences: 2 S more of the kind; caption s and caption S + s tell of one photograph.
        """
        captions = self._texts(labels)
        images = self.embedding(region_features=region_features).image_embeds  # [B, D]
        matched = self.loss(images, captions, image_index)
        report: dict[str, float | torch.Tensor] = {"matched": matched.detach()}
        if sentences is None:
            return LossOutput(loss=matched, report=report)
        first, second = self._texts(sentences).chunk(2)  # [S, D]
        alike = self.loss(first, second, torch.arange(len(first), device=first.device))
        report["alike"] = alike.detach()
        return LossOutput(loss=matched + self.sentence_weight * alike, report=report)

    def _texts(self, labels: torch.LongTensor) -> torch.Tensor:
        config = self.embedding.config
        start = labels.new_full((len(labels), 1), config.bos_token_id)
        ids = torch.cat([start, labels], 1)[:, : config.max_tokens]
        return self.embedding(
            input_ids=ids.masked_fill(ids == IGNORE_INDEX, config.pad_token_id), attention_mask=ids != IGNORE_INDEX
        ).text_embeds


class SentencePairs:
    """Captions that tell of the same photograph: batches of pairs, drawn by a seed."""

    def __init__(self, groups: Sequence[Sequence[str]], tokenizer, max_words: int) -> None:
        self.groups: list[list[list[int]]] = []
        for group in groups:
            texts = list(dict.fromkeys(filter(None, map(normalise_caption, group))))
            rows = [e.ids[1:] for e in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
            kept = [row for row in rows if len(row) <= max_words + 1]
            if len(kept) > 1:
                self.groups.append(kept)
        if not self.groups:
            raise DataError("data.sentences has no photograph with two captions.")

    def draw(self, count: int, seed: tuple[int, ...]) -> torch.LongTensor:
        """[2 * count, T], padded with -100: the first of each pair, then the second of each."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.groups), min(count, len(self.groups)), replace=False)
        pairs = [rng.permutation(len(self.groups[i]))[:2] for i in chosen]
        rows = [self.groups[i][pair[side]] for side in (0, 1) for i, pair in zip(chosen, pairs, strict=True)]
        return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=IGNORE_INDEX)


class PairedExamples(torch.utils.data.Dataset):
    """`CaptionExamples` that tell their key, which draws the pairs beside them."""

    def __init__(self, examples: CaptionExamples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]):
        return self.examples[key], key


def collate_pairs(items, pairs: SentencePairs | None, count: int, kind: str) -> dict[str, torch.Tensor]:
    """A batch as `EmbeddingTraining.forward` takes it."""
    batch = collate([example for example, _ in items], kind)
    if pairs is not None:
        first, seed = items[0][1]
        batch["sentences"] = pairs.draw(count, (seed, first))
    return batch


class MeanFeatures:
    """A feature cache whose regions are averaged once, for an embedding that keeps nothing but their mean.

    A training step then reads 1 vector of a photograph in place of P, which is most of its time. As a source (see
    `training.photo_sources`) it gives [1, F], whose mean is itself.
    """

    kind = "region_features"

    def __init__(self, cache: FeatureCache, block: int = 256) -> None:
        self.usable, self.views = cache.usable, cache.views
        self.means = np.empty((*cache.features.shape[:2], 1, cache.features.shape[-1]), dtype=np.float16)
        for start in range(0, len(cache), block):
            regions = torch.from_numpy(np.array(cache.features[start : start + block]))  # [b, views, P, F]
            self.means[start : start + block] = regions.float().mean(2, keepdim=True).half().numpy()

    def get(self, row: int, view: int = 0, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Mean features [1, F] of one photograph."""
        return torch.from_numpy(self.means[row, view])

    def get_many(self, rows: Sequence[int]) -> torch.Tensor:
        """Mean features [B, 1, F] of the unmirrored photographs."""
        return torch.from_numpy(self.means[list(rows), 0])


class RetrievalEvaluation:
    """Validation photographs and all their captions look for each other; every process does all of it."""

    def __init__(self, split: CaptionSplit, source: FeatureCache | MeanFeatures, count: int | None = None) -> None:
        self.rows = [row for row in range(len(split)) if source.usable[row] and split.captions[row]][:count]
        if not self.rows:
            raise DataError(f"{split.name}: no photograph with captions to evaluate on.")
        self.split, self.source = split, source

    def __call__(self, model: PictaleJointEmbedding) -> dict[str, float]:
        images = np.concatenate(
            [model.embed_images(self.source.get_many(self.rows[i : i + 64])) for i in range(0, len(self.rows), 64)]
        )
        texts = [text for row in self.rows for text in self.split.captions[row]]
        owner = [i for i, row in enumerate(self.rows) for _ in self.split.captions[row]]
        return retrieval_scores(images, model.embed_texts(texts), owner)


def save_embedding(model: PictaleJointEmbedding, folder: Path) -> None:
    """A folder that `from_pretrained` loads: fp16 weights (read back as float32), config, tokenizer."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    model.tokenizer.save_pretrained(folder)


def run(recipe: JointEmbeddingRecipe, resume: bool = False) -> TrainResult:
    """Train as `recipe` says."""
    data = recipe.data
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    output = prepare_output_dir(recipe.training.output_dir, resume)
    if state.is_main_process:
        write_recipe(recipe, output / "recipe.json")
    captioner, processor = load_eyes(recipe.captioner)
    captioner.to(state.device)
    splits = [read_split(name, data.train_split, data.limit) for name in data.train]
    extra = [read_captions(name, data.train_split) for name in data.sentences]
    model = build_embedding(recipe, captioner, [*(split.captions for split in splits), *extra]).to(state.device)
    mean_only = model.config.image_pooling == "mean"

    def source(split: CaptionSplit, views: int) -> FeatureCache | MeanFeatures:
        more = {"views": views, "label": split.name, "precision": data.cache_precision}
        cache = open_source(captioner.encoder, processor, split.images, data.cache_dir, **more)
        return MeanFeatures(cache) if mean_only else cache

    sources = [source(split, 2 if data.mirror else 1) for split in splits]
    examples = CaptionExamples(splits, sources, model.tokenizer, data.captions_per_image, data.max_words)
    held = read_split(data.validation[0], data.validation_split, data.limit)
    evaluation = RetrievalEvaluation(held, source(held, 1), data.validation_images)
    pairs = None
    if data.sentences and recipe.loss.sentence_weight:
        groups = [group for part in [*extra, *(split.captions for split in splits)] for group in part]
        pairs = SentencePairs(groups, model.tokenizer, data.max_words)
    loader = DataLoader(
        PairedExamples(examples),
        batch_sampler=EpochBatches(len(examples), data.batch_size, recipe.training.seed),
        collate_fn=partial(collate_pairs, pairs=pairs, count=data.sentence_batch, kind=examples.kind),
    )
    state.print(
        f"{len(examples)} photographs, {examples.caption_count} captions"
        + (f", {len(pairs.groups)} groups of captions" if pairs else "")
        + f", {len(model.tokenizer)} words, {model.num_parameters():,} parameters beside the backbone",
        file=sys.stderr,
    )
    return train(
        EmbeddingTraining(model, recipe.loss),
        loader,
        recipe.training,
        evaluate=lambda weights: evaluation(weights.embedding),
        save=lambda weights, folder: save_embedding(weights.embedding, folder),
        resume=resume,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    args = recipe_parser(__doc__).parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one at every save
    try:
        recipe = read_recipe(args.recipe, JointEmbeddingRecipe, args.overrides)
        result = run(recipe, args.resume)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    PartialState().print(
        f"Best {recipe.training.metric} {result.best_metric:.2f} at step {result.best_step}; "
        f"weights in {Path(recipe.training.output_dir) / 'best'}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
