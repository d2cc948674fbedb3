"""Training throughput of the captioner on cached features, beside the loop of the tutorials.

    python -m training.benchmark_captioner [--model FOLDER] [--batch-size 32] [--captions 5] [--rounds 5] [--json]

Three ways to train one and the same model (equal loss, `tests/test_benchmark_captioner.py`) on the same batches, in
turns, optimizer step included:
    pictale    the captioner: regions and keys once a photograph, words and vocabulary once a sequence, no padding
    keys       a textbook loop over a padded batch: each caption has its own copy of the photograph, `nn.LSTMCell`, the
               attention projects the regions to its keys at every step (sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning
               and the TensorFlow tutorial), the vocabulary layer is applied at every step
    regions    the same loop, where the features are projected to the regions at every step too
`ratio` compares the medians of the first two, `ratio_regions` those of the first and the last; `ratio_cpu` is that of
processor time of the first two, which says the most while other programs run. Features are random numbers of the
backbone's shape, caption lengths those of Flickr8k; reading the cache from the disk is left out of all.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import nn

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import PictaleError
from modeling.model_folder import DEFAULT_PIPELINE
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration

from .loop import native_bf16

# words of a normalised caption and its end id: how many of the 30,455 captions of the Flickr8k training split
LENGTHS = {4: 158, 5: 362, 6: 904, 7: 2005, 8: 2580, 9: 2978, 10: 3355, 11: 3366, 12: 3177, 13: 2804, 14: 2347}
LENGTHS |= {15: 1867, 16: 1345, 17: 988, 18: 668, 19: 515, 20: 366, 21: 206, 22: 137, 23: 110}


class TextbookCaptioner(nn.Module):
    """The same model with soft attention and tied or untied words, written as the tutorials write it.

    Args:
        model: whose weights and settings are copied.
        regions_at_each_step: project the features to the regions at every step, not only the regions to the keys.

    Raises:
        PictaleError: the model has an option that this loop does not have.
    """

    def __init__(self, model: PictaleCaptionerForConditionalGeneration, regions_at_each_step: bool = False):
        super().__init__()
        config, decoder, encoder = model.config, model.decoder, model.encoder
        options = {"attention_mode": "soft", "output_type": "deep", "scheduled_sampling": "none"}
        options |= {"adaptive_cutoff": None, "output_bottleneck": None, "attention_heads": 1, "context_gate": True}
        for name, value in options.items():
            if getattr(config, name) != value:
                raise PictaleError(f"The textbook loop has {name} {value}, not {getattr(config, name)}.")
        self.config, self.regions_at_each_step = config, regions_at_each_step
        self.projection, self.norm, self.keys = encoder.projection, encoder.norm, encoder.keys
        self.initial_state, self.attention, self.initial = decoder.initial_state, decoder.attention, decoder.initial
        self.query = nn.Linear(config.hidden_size, config.attention_dim)
        self.gate = nn.Linear(config.hidden_size, config.context_dim)
        self.cell = nn.LSTMCell(config.embed_dim + config.context_dim, config.hidden_size)
        weights, biases = (part.split(decoder.splits) for part in decoder.state_projection.parameters())
        with torch.no_grad():
            for part, target in enumerate((None, self.query, self.gate)):
                if target is not None:
                    target.weight.copy_(weights[part])
                    target.bias.copy_(biases[part])
            self.cell.weight_hh.copy_(weights[0])
            self.cell.bias_hh.zero_()
            self.cell.bias_ih.copy_(biases[0])
            inputs = (decoder.word_projection.weight, decoder.context_projection.weight)
            self.cell.weight_ih.copy_(torch.cat(inputs, 1))
        self.embedding, self.vocabulary = model.embedding, model.vocabulary
        self.output_state, self.output_context = decoder.output_state, decoder.output_context
        self.output_projection = decoder.output_projection
        self.region_dropout = nn.Dropout(config.region_dropout)
        self.embed_dropout = nn.Dropout(config.embed_dropout)
        self.output_dropout = nn.Dropout(config.output_dropout)

    def regions(self, features: torch.Tensor) -> torch.Tensor:
        return self.region_dropout(self.norm(self.projection(features)))  # [R, P, F] -> [R, P, C]

    def scores(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        if self.config.attention_type == "bahdanau":
            return self.attention.energy(torch.tanh(keys + query.unsqueeze(1))).squeeze(2)  # [R, P, A] -> [R, P]
        return (keys @ query.unsqueeze(2)).squeeze(2) * self.config.attention_dim**-0.5  # [R, P, A] x [R, A, 1]

    def forward(
        self, region_features: torch.Tensor, labels: torch.LongTensor, image_index: torch.LongTensor
    ) -> torch.Tensor:
        """Loss of captions `labels` [R, T], padded with -100, of photographs with `region_features` [B, P, F]."""
        features = region_features[image_index].to(self.projection.weight.dtype)  # [R, P, F]
        regions = self.regions(features)
        state = self.initial_state(regions)
        h, c = state.h, state.c
        starts = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        inputs = torch.cat([starts, labels[:, :-1]], 1).clamp_min(0)
        logits, alphas = [], []
        for t in range(labels.shape[1]):
            if self.regions_at_each_step and t > 0:
                regions = self.regions(features)
            word = self.embed_dropout(self.embedding(inputs[:, t]))  # [R, E]
            alpha = self.scores(self.query(h), self.keys(regions)).softmax(-1)  # [R, P]
            z = torch.sigmoid(self.gate(h)) * (alpha.unsqueeze(2) * regions).sum(1)  # [R, C]
            h, c = self.cell(torch.cat([word, z], 1), (h, c))
            deep = torch.tanh(word + self.output_state(self.output_dropout(h)) + self.output_context(z))
            logits.append(self.vocabulary(self.output_projection(self.output_dropout(deep))))  # [R, V]
            alphas.append(alpha)
        cross_entropy = nn.functional.cross_entropy(
            torch.stack(logits, 1).flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.config.label_smoothing,
        )
        seen = (torch.stack(alphas, 1) * (labels != IGNORE_INDEX).unsqueeze(-1)).sum(1)  # [R, P]
        return cross_entropy + self.config.attention_penalty * (1 - seen).square().mean()


def make_batch(
    config: PictaleCaptionerConfig, channels: int, photos: int, captions: int, seed: int
) -> dict[str, torch.Tensor]:
    """Random features [B, P, F] in half precision, as the cache keeps them, and captions of Flickr8k's lengths."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor(list(LENGTHS.values()), dtype=torch.float).multinomial(
        photos * captions, replacement=True, generator=generator
    )
    lengths = torch.tensor(list(LENGTHS))[places]
    labels = torch.randint(4, config.vocab_size, (photos * captions, int(lengths.max())), generator=generator)
    labels[torch.arange(labels.shape[1]) >= lengths.unsqueeze(1)] = IGNORE_INDEX
    regions = (-(-config.image_size // 32)) ** 2
    return {
        "region_features": torch.randn(photos, regions, channels, generator=generator).half(),
        "labels": labels,
        "image_index": torch.arange(photos).repeat_interleave(captions),
    }


def benchmark(
    model: PictaleCaptionerForConditionalGeneration,
    batch_size: int = 32,
    captions: int = 5,
    rounds: int = 5,
    device: str = "cpu",
    bf16: bool | None = None,
) -> dict[str, float]:
    """Figures by name: captions a second of each way, and the ratios of median seconds a step."""
    ways = {"pictale": copy.deepcopy(model)}
    ways |= {"keys": TextbookCaptioner(copy.deepcopy(model)), "regions": TextbookCaptioner(copy.deepcopy(model), True)}
    optimizers = {}
    for name, way in ways.items():
        way.to(device).train()
        optimizers[name] = torch.optim.AdamW([p for p in way.parameters() if p.requires_grad], lr=1e-4)
    bf16 = native_bf16() if bf16 is None else bf16
    channels = model.encoder.backbone.channels
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first one warms up
        batch = make_batch(model.config, channels, batch_size, captions, turn)
        batch = {key: value.to(device) for key, value in batch.items()}
        for name, way in ways.items():
            start, started = time.perf_counter(), time.process_time()
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
                loss = way(**batch).loss if name == "pictale" else way(**batch)
            loss.backward()
            nn.utils.clip_grad_norm_(way.parameters(), 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            loss.item()  # waits for the device
            if turn:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    figures = {f"{name}_captions_per_s": batch_size * captions / median[name] for name in ways}
    return figures | {
        "ratio": median["keys"] / median["pictale"],
        "ratio_regions": median["regions"] / median["pictale"],
        "ratio_cpu": statistics.median(processor["keys"]) / statistics.median(processor["pictale"]),
        "bf16": bf16,
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = DEFAULT_PIPELINE.parent / "captioner-flickr8k"
    parser.add_argument("--model", default=str(default), help="folder whose config.json gives the sizes")
    parser.add_argument("--batch-size", type=int, default=32, help="photographs in a batch")
    parser.add_argument("--captions", type=int, default=5, help="captions of each photograph")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--float32", action="store_true", help="no bfloat16, also where the machine has it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    try:
        config = PictaleCaptionerConfig.from_pretrained(args.model)
        model = PictaleCaptionerForConditionalGeneration(config)
        figures = benchmark(
            model, args.batch_size, args.captions, args.rounds, args.device, False if args.float32 else None
        )
    except (PictaleError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures) if args.json else "\n".join(f"{name:24}{value:10.2f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
