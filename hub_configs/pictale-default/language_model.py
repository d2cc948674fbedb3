"""A causal language model of other people: found by name, its size told, loaded when it is needed, and sampled.

A name is a folder, a GGUF file, a Hub id `org/model` (if wished `org/model@revision`), or a GGUF file of a Hub
repository, `org/model/file.gguf`. Only safetensors and GGUF are read: no pickle, and no code of the model's. Sampling
is this package's own (`sampling.draw`), so that a seed means the same story whatever else is drawn, and so that each
token is computed when it is asked for: whoever stops asking has stopped the model.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .errors import ModelFolderError
from .model_folder import download, load_component, looks_like_hub_id
from .sampling import SamplingOptions, bar_repeats, draw
from .text import is_content_word

CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")  # what models call what they remember of a text
TEXT_FILES = (".json", ".txt", ".model", ".jinja")  # configuration and tokenizer
OTHER_WORDS = 0.15  # share of the presence penalty for what is no content: else all sentences begin alike
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>")
CAUSAL = ("CausalLM", "LMHeadModel", "ConditionalGeneration")  # ends of architectures' names
BYTES_A_PARAMETER, GGUF_BYTES_A_PARAMETER = 2.0, 0.7  # about, to guess the one from the other
SMALL = 1e9  # parameters up to which float32, which processors are quickest with, is affordable
PARAMETERS_A_SECOND = 2.2e9  # times tokens: what two cores of a server processor did with SmolLM2-135M in float32
WORDS_A_TOKEN = 0.75
PACES = ((8.0, "faster than one reads"), (2.5, "about as fast as one reads"), (0.7, "slower than one reads"))


@dataclass(frozen=True)
class ModelPlace:
    """Where a language model is.

    Args:
        name: What people call it: a Hub id, or the name of the folder or file.
        folder: That holds it, or None if it is on the Hub.
        repo_id: Its Hub id, if wished with a revision, or "".
        gguf: Its GGUF file in there, or "".
    """

    name: str
    folder: Path | None = None
    repo_id: str = ""
    gguf: str = ""

    @classmethod
    def of(cls, given: str) -> ModelPlace | None:
        """What a name stands for; None if for no model.

        Raises:
            ModelFolderError: it is a folder without a model.
        """
        if not given:
            return None
        path = Path(given).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return cls(path.stem, path.parent, gguf=path.name)
        if path.is_dir():
            name, files = path.resolve().name, sorted(path.glob("*.gguf"))
            if (path / "config.json").is_file():
                return cls(name, path)
            if len(files) == 1:
                return cls(name, path, gguf=files[0].name)
            raise ModelFolderError(f"The folder {given} has no language model: it needs a config.json, or a GGUF file.")
        owner, _, rest = given.partition("/")
        repo, _, file = rest.partition("/")
        if file.endswith(".gguf") and looks_like_hub_id(f"{owner}/{repo}"):
            return cls(Path(file).stem, repo_id=f"{owner}/{repo}", gguf=file)
        return cls(given, repo_id=given) if looks_like_hub_id(given) else None

    @cached_property
    def files(self) -> dict[str, int]:
        """The files that are needed, with their bytes; empty if the Hub does not tell.

        Raises:
            ModelFolderError: there are no weights of a kind that is read.
        """
        if self.folder is not None:
            files = {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}
        else:
            files = self._on_the_hub()
        weights = [name for name in files if name.endswith(".safetensors") and name.startswith("model")]
        weights = ["model.safetensors"] if "model.safetensors" in weights else weights
        if files and not (weights or self.gguf in files):
            raise ModelFolderError(f"{self.name} has no weights that are read here: safetensors, or a GGUF file.")
        needed = [self.gguf] if self.gguf else [*weights, *(name for name in files if name.endswith(TEXT_FILES))]
        return {name: files[name] for name in needed if name in files}

    def _on_the_hub(self) -> dict[str, int]:
        repo, _, revision = self.repo_id.partition("@")
        try:
            entries = list(HfApi().list_repo_tree(repo, revision=revision or None))
        except Exception:  # whatever is wrong is told when it is downloaded; perhaps it is in the cache
            return {}
        return {entry.path: entry.size for entry in entries if getattr(entry, "size", None) is not None}

    @property
    def bytes(self) -> int:
        """Of its weights; 0 if not known."""
        return sum(size for name, size in self.files.items() if name.endswith((".safetensors", ".gguf")))

    @property
    def parameters(self) -> float:
        """About how many, from the bytes."""
        return self.bytes / (GGUF_BYTES_A_PARAMETER if self.gguf else BYTES_A_PARAMETER)

    def local(self) -> Path:
        """The folder that holds it, downloaded if need be. Raises ModelFolderError."""
        if self.folder is not None:
            return self.folder
        wanted = sorted(self.files) or [self.gguf or "*.safetensors", *(f"*{ending}" for ending in TEXT_FILES)]
        return download(self.repo_id, "writer", allow_patterns=wanted)


def expected_pace(parameters: float) -> str:
    """How fast a model of this size should write on two cores, in words that promise no more than is known."""
    words = WORDS_A_TOKEN * PARAMETERS_A_SECOND / max(parameters, 1.0)
    return next((pace for least, pace in PACES if words >= least), "very slow: minutes for a story")


class LanguageModel:
    """A loaded model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        vocabulary = tokenizer.get_vocab()
        told = getattr(model.generation_config, "eos_token_id", None)
        ends = {*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id}
        ends |= {vocabulary.get(mark) for mark in TURN_ENDS}
        self.ends = sorted(end for end in ends if end is not None)
        self._barred = sorted({*tokenizer.all_special_ids} - {*self.ends})
        self._is_content: torch.Tensor | None = None
        self._few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def load(cls, place: ModelPlace, device: str | torch.device = "cpu") -> LanguageModel:
        """Load a model, from the Hub if need be.

        Raises:
            ModelFolderError: not there, damaged, no causal language model, or too large for the memory that is free.
        """
        if place.gguf and importlib.util.find_spec("gguf") is None:
            raise ModelFolderError(f"{place.name} is a GGUF file, which is read with gguf: pip install gguf.")
        folder = place.local()
        on_processor = torch.device(device).type == "cpu"
        wide = on_processor and place.parameters <= SMALL
        if on_processor:
            _check_memory(place.name, place.parameters * (4 if wide else 2))
        safe: dict[str, Any] = {"trust_remote_code": False}
        if place.gguf:
            safe["gguf_file"] = place.gguf
        else:
            _check_kind(place.name, folder, safe)
        tokenizer = load_component(AutoTokenizer.from_pretrained, folder, "writer's tokenizer", weights=False, **safe)
        dtype = torch.float32 if wide else "auto"
        whole = {"weights": not place.gguf, "dtype": dtype}
        model = load_component(AutoModelForCausalLM.from_pretrained, folder, "writer", **whole, **safe)
        return cls(model.to(device), tokenizer)

    @property
    def window(self) -> int:
        """Tokens that it can read at once."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)

    @torch.inference_mode()
    def stream(
        self,
        prompt: Sequence[int],
        generator: torch.Generator,
        options: SamplingOptions,
        told: Sequence[int] = (),
        shown: Sequence[int] = (),
    ) -> Iterator[str]:
        """What it goes on with, token by token.

        Args:
            prompt: Ids, at least one.
            generator: On the model's device.
            options: How tokens are drawn, at least and at most how many.
            told: Ids of the story so far: `presence_penalty` holds for its words, too.
            shown: Ids of other text of which, as of `told`, no n-gram is to be repeated.

        Yields:
            Pieces of text; an empty one last if it came to an end by itself.
        """
        device = self.model.device
        ids = torch.tensor([list(prompt)], device=device)  # [1, T]
        written: list[int] = []
        text, memory = "", {}
        penalty = None
        keywords = {"logits_to_keep": 1} if self._few_logits else {}
        for step in range(options.max_new_tokens):
            output = self.model(input_ids=ids, use_cache=True, **memory, **keywords)
            # .keys(): since 5.24 an output also answers to the old names of what it has
            memory = {name: output[name] for name in CACHES if name in output.keys() and output[name] is not None}  # noqa: SIM118
            scores = output.logits[:, -1].float()  # [1, V]
            if penalty is None:
                weight = options.presence_penalty * self._content(scores.size(-1)).to(device)  # [V]
                penalty = torch.zeros_like(weight).index_fill(0, torch.tensor(told, device=device).long(), 1) * weight
            scores -= penalty
            scores[:, self._barred] = -torch.inf
            if step < options.min_new_tokens:
                scores[:, self.ends] = -torch.inf
            bar_repeats(scores, torch.tensor([[*shown, *told, *written]]), options.no_repeat_ngram_size)
            token = draw(scores, generator, options)  # [1]
            if int(token) in self.ends:
                yield ""
                return
            written.append(int(token))
            penalty[token] += weight[token]
            ids = token[:, None] if memory else torch.cat([ids, token[:, None]], 1)
            longer = self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if len(longer) > len(text) and not longer.endswith("\ufffd"):  # half a character waits for its other half
                yield longer[len(text) :]
                text = longer

    def _content(self, width: int) -> torch.Tensor:
        """1 for tokens that are words of content, or begin one, else `OTHER_WORDS` [V]."""
        if self._is_content is None:
            marks = content_weights(self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer))))
            self._is_content = torch.tensor([*marks, *[OTHER_WORDS] * width][:width])
        return self._is_content


def content_weights(tokens: Sequence[str | None]) -> list[float]:
    """1 for tokens that are words of content, or begin one, else `OTHER_WORDS`."""
    return [1.0 if is_content_word((token or "").strip("Ġ▁ ")) else OTHER_WORDS for token in tokens]


def _check_kind(name: str, folder: Path, safe: dict[str, Any]) -> None:
    """Raise ModelFolderError unless the config is that of a causal language model that transformers knows."""
    config = load_component(AutoConfig.from_pretrained, folder, "writer's configuration", weights=False, **safe)
    architectures = config.architectures or ["CausalLM"]
    if type(config) not in AutoModelForCausalLM._model_mapping or not architectures[0].endswith(CAUSAL):
        raise ModelFolderError(f"{name} is no causal language model ({config.model_type}): choose one that writes.")


def _check_memory(name: str, needed: float) -> None:
    """Raise ModelFolderError if less memory is free, where that can be found out: being killed helps nobody."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, IndexError, StopIteration):
        return
    if needed > free:
        raise ModelFolderError(
            f"The writer {name} needs about {in_bytes(needed)} of memory, and {in_bytes(free)} are free: choose a "
            "smaller model."
        )


def in_bytes(count: float) -> str:
    """`269 MB`, `1.7 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.{0 if count >= 1e7 else 1}f} MB"
