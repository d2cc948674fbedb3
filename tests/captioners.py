"""Untrained captioners for tests, a textbook beam search, and the captioner's equations written out one by one."""

import torch

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration

TINY = {
    "vocab_size": 23,
    "backbone_options": {"width": 0.25, "depth": 0.3, "head_channels": 24},
    "image_size": 64,
    "embed_dim": 12,
    "context_dim": 16,
    "attention_dim": 10,
    "hidden_size": 14,
}
NO_DROPOUT = {"region_dropout": 0.0, "embed_dropout": 0.0, "output_dropout": 0.0}
STEPS = 9


def make_model(**changes):
    """A captioner whose random weights are sharp enough for beams to differ."""
    torch.manual_seed(0)
    model = PictaleCaptionerForConditionalGeneration(PictaleCaptionerConfig(**{**TINY, **changes})).eval()
    sharp = ("decoder.", "embedding.", "vocabulary.", "words.", "expansion.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(sharp) and parameter.dim() > 1:
                parameter.normal_(0, 0.7)
        bias = model.vocabulary.bias if model.config.adaptive_cutoff is None else model.words.head_bias
        bias[model.config.eos_token_id] += 1.0
    return model


def textbook_beam(model, features, beams, steps):
    """Beam search for one photograph that scores every prefix anew; returns ids and mean log-probability."""
    eos, live, done = model.config.eos_token_id, [([model.config.decoder_start_token_id], 0.0)], []
    memory = model.encoder(region_features=features)
    for step in range(steps):
        candidates = []
        for ids, score in live:
            logits = model(encoder_outputs=memory, decoder_input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            candidates += [(ids + [t], score + v) for t, v in enumerate(logits.log_softmax(-1).tolist())]
        candidates.sort(key=lambda pair: -pair[1])
        live = []
        for rank, (ids, score) in enumerate(candidates[: 2 * beams]):
            if ids[-1] == eos or step == steps - 1:
                if rank < beams:
                    done.append((ids, score / (len(ids) - 1)))
            elif len(live) < beams:
                live.append((ids, score))
        done = sorted(done, key=lambda pair: -pair[1])[:beams]
    return done[0]


class WrittenOut:
    """The captioner of one photograph, a word at a time, from the weights and the papers' equations alone.

    No dropout. Gradients reach the model's own parameters, so that losses can be compared with their gradients.
    """

    def __init__(self, model, features):
        self.p, self.config = dict(model.named_parameters(remove_duplicate=False)), model.config
        self.p |= {name: b for name, b in model.named_buffers() if name.startswith("baseline")}
        projected = features @ self.p["encoder.projection.weight"].T + self.p["encoder.projection.bias"]  # [P, C]
        spread = (projected - projected.mean(1, keepdim=True)) / (projected.var(1, correction=0) + 1e-5).sqrt()[:, None]
        self.regions = spread * self.p["encoder.norm.weight"] + self.p["encoder.norm.bias"]
        self.keys = self.regions @ self.p["encoder.keys.weight"].T
        self.h = self.c = features.new_zeros(self.config.hidden_size)
        if self.config.initial_state == "mean":
            first = self.linear("decoder.initial", self.regions.mean(0)).tanh()
            self.h, self.c = first[: len(self.h)], first[len(self.h) :]

    def linear(self, name, x):
        bias = self.p.get(f"{name}.bias")
        return self.p[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def word(self, i):
        """E y."""
        if self.config.adaptive_cutoff is None:
            vector = self.p["embedding.weight"][i]
        elif i == 0:
            vector = self.p["words.head.weight"][0] * 0
        elif i < self.config.adaptive_cutoff:
            vector = self.p["words.head.weight"][i]
        else:
            vector = self.linear("words.tail_projection", self.p["words.tail.weight"][i - self.config.adaptive_cutoff])
        return self.linear("expansion", vector) if "expansion.weight" in self.p else vector

    def energies(self, query):
        """e of each head [N, P]."""
        if self.config.attention_type == "bahdanau":
            v = self.p["decoder.attention.energy.weight"][0]
            return torch.stack([v @ torch.tanh(key + query) for key in self.keys])[None]
        size = len(query) // self.config.attention_heads
        parts = range(0, len(query), size)
        return torch.stack([self.keys[:, i : i + size] @ query[i : i + size] / size**0.5 for i in parts])

    def step(self, vector, places=None):
        """Reads one word vector; returns alpha [N, P]. With `places`, head n reads region places[n]."""
        hidden, attention = self.config.hidden_size, self.config.attention_dim
        state = self.linear("decoder.state_projection", self.h)
        gates, query, gate = state.split([4 * hidden, attention, len(state) - 4 * hidden - attention])
        alpha = self.energies(query).softmax(1)
        size = self.regions.shape[1] // len(alpha)
        z = []
        for n, weights in enumerate(alpha):
            if places is not None:
                weights = torch.eye(len(self.regions))[places[n]]
            z.append(sum(w * a for w, a in zip(weights, self.regions[:, n * size : (n + 1) * size], strict=True)))
        self.z = torch.cat(z)
        if self.config.context_gate:
            self.z = gate.sigmoid() * self.z
        gates = (
            gates + self.linear("decoder.word_projection", vector) + self.linear("decoder.context_projection", self.z)
        )
        enter, forget, new, leave = gates.split(hidden)
        self.c = forget.sigmoid() * self.c + enter.sigmoid() * new.tanh()
        self.h = leave.sigmoid() * self.c.tanh()
        self.y = vector
        return alpha

    def log_probs(self):
        """Log-probability of every next word [V]."""
        deep = self.h
        if self.config.output_type == "deep":
            deep = self.linear("decoder.output_state", self.h) + self.linear("decoder.output_context", self.z)
            deep = (self.y + deep).tanh()
        if "decoder.output_projection.weight" in self.p:
            deep = self.linear("decoder.output_projection", deep)
        if self.config.adaptive_cutoff is None:
            return self.linear("vocabulary", deep).log_softmax(0)
        gate = self.linear("words.tail_gate", deep)
        head = torch.cat([self.p["words.head.weight"] @ deep + self.p["words.head_bias"], gate]).log_softmax(0)
        small = self.p["words.tail_projection.weight"].T @ deep
        tail = (self.p["words.tail.weight"] @ small + self.p["words.tail_bias"]).log_softmax(0)
        return torch.cat([head[:-1], head[-1] + tail])
