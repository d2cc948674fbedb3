"""The storyteller's network, which reads tokens of many texts at once: a Llama with its weights in 8 bits.

`AutoModelForCausalLM` loads the same folder. This reader is for stories as the page writes them: every linear layer is
computed once for the newest tokens of all visitors, while each text attends to a memory of its own. On a processor the
weights stay in 8 bits (`torch._weight_int8pack_mm`, activations in bfloat16, sums in float32), which reads a quarter of
what float32 reads, and which computes a row in the same way whatever stands in the other rows: what is written for one
visitor does not depend on who else is there. Where torch has no quick kernel for that, weights are float32; on a GPU
they are bfloat16. For the last two, rows may differ in their last bits with the size of the batch.

A memory holds the keys and values of a tree: a prompt that is read once, then continuations of it side by side, a
column for each token. A mask says which columns belong to the text of a row.

Shapes: N rows (tokens read in this step, of all texts), n rows of one text, H width, A heads, K heads of keys, D width
of a head, C columns of a memory, L layers, V pieces of the vocabulary, O outputs and I inputs of a linear layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from .errors import ModelFolderError
from .model_folder import check_weights, described

WHAT = "storyteller"
PRECISIONS = ("auto", "int8", "bfloat16", "float32")
INT8_STEP = 32  # the kernel for 8 bits takes inputs in steps of so many
REFINED = 64  # logits that are computed anew in float32: the kernel for 8 bits rounds to 1/256 of their size
SLOW = 5.0  # times the time of float32: there is no kernel
COLUMNS = 64  # a memory grows by at least so many
LAYER_PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [O, I] as whole numbers from -127 to 127, and what each row is to be multiplied by [O] in bfloat16."""
    scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
    return (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


@dataclass(frozen=True)
class Matrix:
    """The weights [O, I] of a linear layer; `scale` [O] for those in 8 bits, else None."""

    weight: torch.Tensor
    scale: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, I] -> [N, O]."""
        if self.scale is None:
            return functional.linear(inputs, self.weight)
        return torch._weight_int8pack_mm(inputs, self.weight, self.scale)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows in float32 [..., I]."""
        found = self.weight[ids].float()
        return found if self.scale is None else found * self.scale[ids].float().unsqueeze(-1)

    def __getitem__(self, order: torch.Tensor) -> Matrix:
        return Matrix(self.weight[order], None if self.scale is None else self.scale[order])

    def as_precision(self, precision: str, device: torch.device) -> Matrix:
        """The same weights, as they are to be computed with."""
        if precision == "int8":
            weight, scale = (self.weight, self.scale) if self.scale is not None else quantized_rows(self.weight)
            # a copy, since the kernel reads what is aligned, and what is mapped from a file may begin anywhere
            return Matrix(weight.clone(memory_format=torch.contiguous_format), scale.to(torch.bfloat16, copy=True))
        dtype = getattr(torch, precision)
        if self.scale is None:
            return Matrix(self.weight.to(device, dtype))
        return Matrix((self.weight.float() * self.scale.float()[:, None]).to(device, dtype))


def joined(parts: Sequence[Matrix]) -> Matrix:
    """Several layers with the same inputs as one."""
    if len({part.scale is None for part in parts}) > 1:  # only some are in 8 bits
        parts = [Matrix(part.rows(torch.arange(len(part.weight)))) for part in parts]
    scales = [part.scale for part in parts if part.scale is not None]
    return Matrix(torch.cat([part.weight for part in parts]), torch.cat(scales) if scales else None)


class Memory:
    """Keys and values of one text, or of a tree of texts: [L, K, C, D] each, of which `length` columns are in use."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.empty(layers, heads, 0, width, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def reserve(self, columns: int) -> None:
        """Make room for so many columns in all. What memory is free is told by torch's own error."""
        if columns <= self.keys.size(2):
            return
        size = -(-columns // COLUMNS) * COLUMNS
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], size, old.size(3))
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def keep(self, start: int, columns: Sequence[int]) -> None:
        """Forget all columns from `start` on but these, which come to stand there in this order."""
        if columns:
            chosen = torch.tensor(list(columns), device=self.keys.device)
            for held in (self.keys, self.values):
                held[:, :, start : start + len(columns)] = held[:, :, chosen]
        self.length = start + len(columns)


@dataclass(frozen=True)
class Span:
    """The `count` rows of a step that belong to one memory; their keys are put behind its columns.

    Args:
        mask: Added to the scores of attention [n, C], C with the new columns; None: a single row that sees them all.
    """

    memory: Memory
    count: int
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class _Layer:
    before: torch.Tensor  # weights of the norms [H]
    after: torch.Tensor
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix


class StoryNetwork:
    """Weights, and what they make of tokens."""

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor], precision: str, device: torch.device):
        self.config, self.precision, self.device = config, precision, device
        self.heads, self.key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.width = config.get("head_dim") or config["hidden_size"] // self.heads
        self.layers = config["num_hidden_layers"]
        self.eps, self.vocabulary = config["rms_norm_eps"], config["vocab_size"]
        self.window = config["max_position_embeddings"]
        self.dtype = (
            torch.float32 if precision == "float32" else torch.bfloat16
        )  # of the inputs of linear layers, and of memories
        self._turns = self._rotations(config)

        def matrix(*names: str, order: torch.Tensor | None = None) -> Matrix:
            parts = [Matrix(weights.pop(f"{n}.weight"), _flat(weights.pop(f"{n}.weight_scale", None))) for n in names]
            whole = joined(parts) if len(parts) > 1 else parts[0]
            return (whole if order is None else whole[order]).as_precision(precision, device)

        def norm(name: str) -> torch.Tensor:
            return weights.pop(f"{name}.weight").to(device, torch.float32)

        self._layers = []
        for index in range(self.layers):
            at = f"model.layers.{index}."
            q, k, v, out, gate, up, down = (at + part for part in LAYER_PARTS)
            self._layers.append(
                _Layer(
                    norm(at + "input_layernorm"),
                    norm(at + "post_attention_layernorm"),
                    matrix(q, k, v, order=self._pairs()),
                    matrix(out),
                    matrix(gate, up),
                    matrix(down),
                )
            )
        self._norm = norm("model.norm")
        self._embedding = matrix("model.embed_tokens")
        tied = config.get("tie_word_embeddings") and "lm_head.weight" not in weights
        self._head = self._embedding if tied else matrix("lm_head")

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", precision: str = "auto") -> StoryNetwork:
        """Read a folder of a Llama, whose linear weights may be in 8 bits (`training.storyteller_export`).

        Args:
            precision: One of `PRECISIONS`; `auto` is what is quickest here: on a GPU bfloat16.

        Raises:
            ModelFolderError: empty, damaged, or of another kind of model; or the memory does not suffice.
        """
        folder, device = Path(folder), torch.device(device)
        check_weights(folder, WHAT)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            _check_config(config)
            if precision == "auto":
                precision = "bfloat16" if device.type != "cpu" else quickest_precision(config)
            weights: dict[str, torch.Tensor] = {}
            for shard in sorted(folder.glob("model*.safetensors")):
                weights |= load_file(shard)
            return cls(config, weights, precision, device)
        except ModelFolderError:
            raise
        except (torch.OutOfMemoryError, MemoryError):
            raise ModelFolderError(f"There is not enough memory for the {WHAT} in {described(folder)}.") from None
        except KeyError as error:
            raise ModelFolderError(f"The {WHAT} in {described(folder)} lacks {error}: download it again.") from None
        except Exception as error:  # json, safetensors and torch raise their own for damaged files
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ModelFolderError(
                f"The {WHAT} in {described(folder)} cannot be loaded ({type(error).__name__}: {reason[:200]}): "
                "its files are damaged or of another kind; download them again."
            ) from error

    def memory(self) -> Memory:
        """An empty one."""
        return Memory(self.layers, self.key_heads, self.width, self.dtype, self.device)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], positions: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """Read tokens, each at its position [N] in its text; `spans` say whose they are, in this order.

        The memories get the new columns, but not a new `length`: who calls sets that when the step has succeeded.

        Returns:
            What the network makes of each row [N, H], for `logits`.
        """
        states = self._embedding.rows(torch.tensor(ids, device=self.device))  # float32 throughout
        turns = self._turns[torch.tensor(positions, device=self.device)].unsqueeze(1)  # [N, 1, D / 2]
        group, count = self.heads // self.key_heads, len(ids)
        places, start = [], 0
        for span in spans:
            end = span.memory.length + span.count
            span.memory.reserve(end)
            mask = None
            if span.mask is not None:
                mask = span.mask.to(self.device, self.dtype).repeat_interleave(group, 0)[None, None]
            places.append((span.memory, slice(start, start + span.count), span.memory.length, end, mask))
            start += span.count
        both = self.heads + self.key_heads
        for index, layer in enumerate(self._layers):
            normed = functional.rms_norm(states, (states.size(1),), layer.before, self.eps).to(self.dtype)
            qkv = layer.qkv(normed).float().view(count, both + self.key_heads, self.width)
            paired = torch.view_as_complex(qkv[:, :both].reshape(count, both, self.width // 2, 2))
            turned = torch.view_as_real(paired * turns).flatten(2)  # [N, A + K, D]
            attended = states.new_empty(count, self.heads * self.width)
            for memory, rows, begin, end, mask in places:
                keys, values = memory.keys[index], memory.values[index]  # [K, C, D]
                keys[:, begin:end] = turned[rows, self.heads :].transpose(0, 1)
                values[:, begin:end] = qkv[rows, both:].transpose(0, 1)
                size = rows.stop - rows.start
                queries = turned[rows, : self.heads].view(size, self.key_heads, group, self.width).transpose(0, 1)
                found = functional.scaled_dot_product_attention(
                    queries.reshape(1, self.key_heads, size * group, self.width).to(keys.dtype),
                    keys[None, :, :end],
                    values[None, :, :end],
                    attn_mask=mask,
                )
                found = found.view(self.key_heads, size, group, self.width).transpose(0, 1)
                attended[rows] = found.reshape(size, -1).float()
            states += layer.out(attended.to(self.dtype))
            normed = functional.rms_norm(states, (states.size(1),), layer.after, self.eps).to(self.dtype)
            gate, up = layer.gate_up(normed).chunk(2, 1)
            states += layer.down(functional.silu(gate) * up)
        return functional.rms_norm(states, (states.size(1),), self._norm, self.eps)

    @torch.inference_mode()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """What comes after each of some rows of `read` [N, H]: unnormalised log-probabilities [N, V] in float32."""
        logits = self._head(states.to(self.dtype)).float()
        if self._head.scale is not None:
            ids = logits.topk(min(REFINED, logits.size(1))).indices  # [N, R]
            exact = torch.stack([self._head.rows(i) @ row for i, row in zip(ids, states, strict=True)])
            logits.scatter_(1, ids, exact)
        return logits

    def _rotations(self, config: dict[str, Any]) -> torch.Tensor:
        """Rotary positions as complex numbers [window, D / 2]."""
        rope = config.get("rope_parameters") or {}
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        steps = torch.arange(0, self.width, 2).float() / self.width
        angles = torch.arange(self.window).float()[:, None] / theta**steps
        return torch.polar(torch.ones_like(angles), angles).to(self.device)

    def _pairs(self) -> torch.Tensor:
        """The order of the outputs of q, k and v in which the two numbers that are turned together are neighbours."""
        half = torch.arange(self.width).view(2, -1).t().flatten()  # 0, D/2, 1, D/2 + 1, ...
        both, plain = self.heads + self.key_heads, torch.arange(self.key_heads * self.width)
        turned = (torch.arange(both)[:, None] * self.width + half).flatten()
        return torch.cat([turned, both * self.width + plain])


def _flat(scale: torch.Tensor | None) -> torch.Tensor | None:
    """Scales of rows, which folders hold as [O, 1], as [O]."""
    return None if scale is None else scale.flatten()


def _check_config(config: dict[str, Any]) -> None:
    """Raise ModelFolderError unless the network is one that is read here."""
    kind = config.get("model_type")
    rope = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default")
    strange = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
    if kind != "llama" or strange or rope != "default" or config.get("hidden_act", "silu") != "silu":
        raise ModelFolderError(f"The {WHAT} must be a plain Llama without biases, and this is another model ({kind}).")


def quickest_precision(config: dict[str, Any]) -> str:
    """`int8` where this torch has a kernel of it for this processor, else `float32`.

    Without one it computes number by number, many times slower than float32; with one it is about as quick for a small
    matrix as this, so that the answer is the same at every start.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    if width % INT8_STEP or inner % INT8_STEP or not hasattr(torch, "_weight_int8pack_mm"):
        return "float32"
    whole, inputs = torch.randn(inner, width), torch.randn(4, width)
    packed = Matrix(whole).as_precision("int8", torch.device("cpu"))
    halves = inputs.bfloat16()
    try:
        quick, plain = _seconds(lambda: packed(halves)), _seconds(lambda: functional.linear(inputs, whole))
    except RuntimeError:  # a torch without this kernel
        return "float32"
    return "int8" if quick < SLOW * plain else "float32"


@torch.inference_mode()
def _seconds(work: Callable[[], Any], rounds: int = 5) -> float:
    """The quickest of a few rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
