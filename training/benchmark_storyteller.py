"""Engines that could write the storyteller's stories, side by side on this machine.

    python -m training.benchmark_storyteller runs/storyteller/best
    python -m training.benchmark_storyteller FOLDER --engines own,ctranslate2 --threads 2 --rounds 5

For each engine: seconds to load, MiB of memory beyond torch's own, milliseconds to the first token behind a prompt of
150 tokens, and tokens a second while 1, 4 (of one prompt) and 20 (of 20 prompts) texts are written, the reading of the
prompts included. Every engine runs in a process of its own, with a model it made of the folder beforehand (`--made
FOLDER` keeps those for the next time); the quickest of a few rounds counts. Engines:

    own             modeling.story_engine, weights in 8 bits
    own-float32     the same where torch has no kernel for 8 bits
    transformers    generate() in float32
    ctranslate2     int8 (pip install ctranslate2)
    llama.cpp       Q8_0 (pip install xllamacpp gguf)
    onnxruntime     int4 (pip install onnxruntime-genai onnx onnx-ir)

Those that are not installed are left out, by name. On a machine that is busy with other things, one thread and
PICTALE_BENCHMARK_CLOCK=process count the seconds that the processor spent on the engine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROMPT, BATCHES = 150, (1, 4, 20)
CLOCK = time.process_time if os.environ.get("PICTALE_BENCHMARK_CLOCK") == "process" else time.perf_counter
NEEDS = {
    "own": (),
    "own-float32": (),
    "transformers": (),
    "ctranslate2": ("ctranslate2",),
    "llama.cpp": ("xllamacpp", "gguf"),
    "onnxruntime": ("onnxruntime_genai", "onnx", "onnx_ir"),
}
Write = Callable[[list[list[int]], int], None]  # so many tokens behind each of these prompts


# -- engines: make(source, folder) turns the model into the engine's own, load(folder, threads) gives what writes ------
def make_own(source: Path, folder: Path) -> None:
    from .storyteller_export import export

    export(source, folder, prompts=0)


def load_own(folder: Path, threads: int, precision: str = "int8") -> Write:
    from modeling.story_engine import STORY_SAMPLING, StoryEngine
    from modeling.story_jobs import Job, Trunk

    engine = StoryEngine.load(folder, threads=threads, precision=precision)

    def write(prompts: list[list[int]], count: int) -> None:
        shared = all(prompt == prompts[0] for prompt in prompts)
        trunks = [Trunk(prompt) for prompt in (prompts[:1] if shared else prompts)]
        seeds = range(len(prompts)) if shared else [0]
        jobs = [Job(trunk, seeds, STORY_SAMPLING, most=count, may_end=False) for trunk in trunks]
        for job in jobs:
            engine.scheduler.submit(job)
        for job in jobs:
            seen = 0
            while not job.over:
                seen, _ = job.wait(seen)

    return write


def make_transformers(source: Path, folder: Path) -> None:
    folder.symlink_to(source.resolve())


def load_transformers(folder: Path, threads: int) -> Write:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def write(prompts: list[list[int]], count: int) -> None:
        ids = torch.tensor(prompts)
        wishes = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, **wishes)

    return write


def make_ctranslate2(source: Path, folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(folder), quantization="int8")


def load_ctranslate2(folder: Path, threads: int) -> Write:
    import ctranslate2

    model = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=threads)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def write(prompts: list[list[int]], count: int) -> None:
        model.generate_batch(
            [[words[i] for i in prompt] for prompt in prompts],
            max_length=count,
            min_length=count,
            sampling_topk=64,
            sampling_topp=0.95,
            sampling_temperature=0.7,
            include_prompt_in_result=False,
        )

    return write


def make_llama_cpp(source: Path, folder: Path) -> None:
    """A GGUF file with Q8_0 weights, in the order of llama.cpp's rotary positions."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    folder.mkdir()
    file = gguf.GGUFWriter(folder / "model.gguf", "llama")
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(heads)
    file.add_head_count_kv(key_heads)
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    file.add_rope_dimension_count(config["hidden_size"] // heads)
    file.add_vocab_size(config["vocab_size"])
    file.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list([piece for piece, _ in pieces])
    file.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for _, i in pieces])
    merges = tokenizer["model"]["merges"]
    file.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    file.add_bos_token_id(config["bos_token_id"])
    file.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    weights: dict[str, Any] = {}
    for shard in source.glob("model*.safetensors"):
        weights |= load_file(shard)
    for name, weight in weights.items():
        weight = weight.float()
        for part, count in (("q_proj", heads), ("k_proj", key_heads)):
            if part in name:
                weight = weight.view(count, 2, -1, weight.size(1)).transpose(1, 2).reshape(weight.shape)
        known = names.get_name(name, try_suffixes=(".weight",))
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.dim() == 2 else gguf.GGMLQuantizationType.F32
        file.add_tensor(known, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def load_llama_cpp(folder: Path, threads: int) -> Write:
    import xllamacpp

    wishes = xllamacpp.CommonParams()
    wishes.model.path = str(folder / "model.gguf")
    wishes.n_parallel, wishes.n_ctx, wishes.warmup = max(BATCHES), max(BATCHES) * 512, False
    wishes.cpuparams.n_threads = wishes.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(wishes)
    pool = ThreadPoolExecutor(max(BATCHES))

    def one(prompt: list[int], count: int) -> None:
        asked = {"prompt": prompt, "n_predict": count, "ignore_eos": True, "cache_prompt": False}
        told = server.handle_completions({**asked, "temperature": 0.7, "top_k": 64, "top_p": 0.95})
        told = json.loads(told) if isinstance(told, str) else told
        if told.get("tokens_predicted", told.get("usage", {}).get("completion_tokens")) != count:
            raise RuntimeError(f"llama.cpp wrote something else: {str(told)[:300]}")

    def write(prompts: list[list[int]], count: int) -> None:
        list(pool.map(lambda prompt: one(prompt, count), prompts))

    return write


def make_onnxruntime(source: Path, folder: Path) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    cache = f"{folder}.cache"
    subprocess.run([*builder, "-i", str(source), "-o", str(folder), "-c", cache], check=True, stdout=sys.stderr)


def load_onnxruntime(folder: Path, threads: int) -> Write:
    import numpy as np
    import onnxruntime_genai as genai

    description = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    description["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (folder / "genai_config.json").write_text(json.dumps(description), encoding="utf-8")
    model = genai.Model(str(folder))

    def write(prompts: list[list[int]], count: int) -> None:
        wishes = genai.GeneratorParams(model)
        length = len(prompts[0]) + count
        wishes.set_search_options(
            batch_size=len(prompts), max_length=length, min_length=length, do_sample=True, top_k=64, temperature=0.7
        )
        generator = genai.Generator(model, wishes)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()

    return write


MAKE: dict[str, Callable[[Path, Path], None]] = {
    "own": make_own,
    "own-float32": make_own,
    "transformers": make_transformers,
    "ctranslate2": make_ctranslate2,
    "llama.cpp": make_llama_cpp,
    "onnxruntime": make_onnxruntime,
}
LOAD: dict[str, Callable[[Path, int], Write]] = {
    "own": load_own,
    "own-float32": lambda folder, threads: load_own(folder, threads, "float32"),
    "transformers": load_transformers,
    "ctranslate2": load_ctranslate2,
    "llama.cpp": load_llama_cpp,
    "onnxruntime": load_onnxruntime,
}


# -- measuring ---------------------------------------------------------------------------------------------------------
def quickest(write: Write, prompts: list[list[int]], count: int, rounds: int) -> float:
    """Seconds of the quickest of a few rounds."""
    times = []
    for _ in range(rounds):
        start = CLOCK()
        write(prompts, count)
        times.append(CLOCK() - start)
    return min(times)


def measure(name: str, folder: Path, vocabulary: int, threads: int, tokens: int, rounds: int) -> dict[str, float]:
    """Figures of one engine, in this process."""
    import random

    import torch  # noqa: F401  (whose memory does not count)
    import transformers  # noqa: F401

    before, start = peak_mib(), time.perf_counter()
    write = LOAD[name](folder, threads)
    figures = {"load_s": time.perf_counter() - start}
    rng = random.Random(0)
    prompts = [[rng.randrange(100, vocabulary) for _ in range(PROMPT)] for _ in range(max(BATCHES))]
    write(prompts[:1], 2)
    figures["first_ms"] = 1000 * quickest(write, prompts[:1], 1, rounds)
    for batch in BATCHES:
        asked = prompts if batch == max(BATCHES) else prompts[:1] * batch
        figures[f"tokens_s_{batch}"] = batch * tokens / quickest(write, asked, tokens, rounds)
        if batch == 4:
            figures["memory_mib"] = peak_mib() - before
    return figures


def peak_mib() -> float:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def missing(name: str) -> list[str]:
    """Packages that an engine needs and that are not installed."""
    return [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]


def benchmark(
    source: Path, made: Path, names: Sequence[str], threads: int, tokens: int, rounds: int
) -> dict[str, dict | str]:
    """Figures by engine, or why there are none; `made` is where their models are, or are put."""
    vocabulary = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    found: dict[str, dict | str] = {}
    for name in names:
        found[name] = _in_processes(name, [name, str(source), str(made / name), vocabulary, threads, tokens, rounds])
        print(row(name, found[name]), flush=True)
    return found


def _in_processes(name: str, asked: list[Any]) -> dict | str:
    """Make the model, and measure in another process, so that what making takes does not count."""
    if lacking := missing(name):
        return f"not installed: {', '.join(lacking)}"
    ready = Path(f"{asked[2]}.made")
    for step in ("measure",) if ready.exists() else ("make", "measure"):
        command = [sys.executable, "-W", "ignore", "-m", "training.benchmark_storyteller", "--worker", step]
        done = subprocess.run(
            [*command, json.dumps(asked)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(asked[4])},
        )
        if done.returncode:
            return f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"
        ready.touch()
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(step: str, asked: list[Any]) -> None:
    name, source, folder, *rest = asked
    if step == "make":
        MAKE[name](Path(source), Path(folder))
    else:
        print(json.dumps(measure(name, Path(folder), *rest)), flush=True)
        os._exit(0)  # some engines do not like to be taken apart


COLUMNS = {"load_s": 1, "memory_mib": 0, "first_ms": 0, **{f"tokens_s_{batch}": 0 for batch in BATCHES}}


def row(name: str, figures: dict[str, float] | str) -> str:
    """A line of the table."""
    if isinstance(figures, str):
        return f"{name:14}{figures}"
    return f"{name:14}" + "".join(f"{figures[column]:13.{digits}f}" for column, digits in COLUMNS.items())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="plain folder of a trained storyteller")
    parser.add_argument("--engines", default=",".join(NEEDS), help="which, in this order")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=130, help="of each text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--made", metavar="FOLDER", help="where the engines' models are kept")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        worker(args.worker[0], json.loads(args.worker[1]))
        return 0
    names = [name.strip() for name in args.engines.split(",")]
    unknown = [name for name in names if name not in NEEDS]
    if not args.source or unknown or not (Path(args.source) / "config.json").is_file():
        told = f"engines are {', '.join(NEEDS)}" if unknown else "name the folder of a trained storyteller"
        print(f"benchmark_storyteller: {told}.", file=sys.stderr)
        return 1
    print(" " * 14 + "".join(f"{column:>13}" for column in COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as place:
        made = Path(args.made or place)
        made.mkdir(parents=True, exist_ok=True)
        benchmark(Path(args.source), made, names, args.threads, args.tokens, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
