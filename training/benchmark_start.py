"""How long a new process takes to its first caption, and how much of that is torch's and transformers' own.

    python -m training.benchmark_start [--model FOLDER] [--photo FILE] [--repeats 5] [--json]

Seconds from the start of the interpreter to the caption on the screen, weights and photo on the disk, the median over
new processes, for the two ways to load a captioner; of the first also what had happened by then. Beside them the floor:
the same imports, and then loading and `generate()` of the smallest model that transformers has itself. Seconds of
processor time stand beside those of the clock, which other programs on the machine lengthen more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from modeling.errors import ImageError, ModelFolderError, PictaleError
from modeling.model_folder import DEFAULT_PIPELINE, check_weights

REPOSITORY = Path(__file__).resolve().parent.parent
HEAD = """
    import json, sys, time
    model_folder, photo, started = sys.argv[1], sys.argv[2], float(sys.argv[3])
    marks = {}
    def mark(name):
        marks[name] = [time.time() - started, time.process_time()]
    import torch
    mark("torch imported")
"""
PROGRAMS = {
    "floor": """
        from transformers import AutoModelForImageTextToText, AutoProcessor, GPT2LMHeadModel
        mark("transformers imported")
        model = GPT2LMHeadModel.from_pretrained(model_folder).eval()
        mark("model loaded")
        print(model.generate(torch.tensor([[1]]), num_beams=3, max_new_tokens=10, pad_token_id=0))
        mark("generated")
    """,
    "Auto classes": """
        from PIL import Image
        from transformers import AutoModelForImageTextToText, AutoProcessor
        mark("transformers imported")
        model = AutoModelForImageTextToText.from_pretrained(model_folder, trust_remote_code=True)
        model.prepare_for_inference()
        processor = AutoProcessor.from_pretrained(model_folder, trust_remote_code=True)
        mark("model loaded")
        ids = model.generate(**processor(images=Image.open(photo), return_tensors="pt"))
        print(processor.batch_decode(ids, skip_special_tokens=True))
        mark("generated")
    """,
    "package": """
        from PIL import Image
        from transformers import AutoTokenizer
        from modeling import PictaleCaptionerForConditionalGeneration, PictaleImageProcessor
        mark("transformers imported")
        model = PictaleCaptionerForConditionalGeneration.from_pretrained(model_folder).prepare_for_inference()
        processor = PictaleImageProcessor.from_pretrained(model_folder)
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        mark("model loaded")
        ids = model.generate(**processor(Image.open(photo), return_tensors="pt"))
        print(tokenizer.batch_decode(ids, skip_special_tokens=True))
        mark("generated")
    """,
}
TAIL = """
    print(json.dumps(marks))
"""
STAGES = ("torch imported", "transformers imported", "model loaded", "generated")


def program(name: str) -> str:
    """The source of one of `PROGRAMS` with its clock."""
    return "\n".join(textwrap.dedent(part) for part in (HEAD, PROGRAMS[name], TAIL))


def save_smallest(folder: str | Path) -> None:
    """A GPT-2 of one layer and a few numbers, as transformers makes and saves it."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    sizes = {"vocab_size": 16, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)


def run_once(name: str, model: Path, photo: Path, place: Path) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of the processor until each of `STAGES`, in a process of its own.

    Raises:
        ModelFolderError: it did not come to its end.
    """
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
    settings["PYTHONPATH"] = str(REPOSITORY) if name == "package" else str(place)
    command = [sys.executable, "-c", program(name), str(model.resolve()), str(photo.resolve())]
    run = subprocess.run([*command, str(time.time())], cwd=place, env=settings, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelFolderError(f"{model} did not caption {photo} in a process of its own: {reason[:300]}")
    return {stage: tuple(marks) for stage, marks in json.loads(run.stdout.splitlines()[-1]).items()}


def benchmark(model: Path, photo: Path, repeats: int = 5) -> dict[str, Any]:
    """Of each program the median seconds until each stage, of the clock and of the processor.

    The programs take turns, so that a busy minute of the machine falls on all of them; one round before them fills the
    caches of the disk and of compiled modules.
    """
    check_weights(model, "captioner")
    if not photo.is_file():
        raise ImageError(f"There is no photo {photo}.")
    times: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        save_smallest(place / "smallest")
        for turn in range(repeats + 1):
            for name, found in times.items():
                marks = run_once(name, place / "smallest" if name == "floor" else model, photo, place)
                if turn:
                    found.append(marks)
    return {
        name: {
            kind: {stage: round(statistics.median(run[stage][i] for run in runs), 2) for stage in STAGES}
            for i, kind in enumerate(("seconds", "processor_seconds"))
        }
        for name, runs in times.items()
    }


def table(report: dict[str, Any]) -> str:
    """The report as people read it: seconds of the clock, and of the processor in brackets."""
    lines = ["| until | " + " | ".join(report) + " |", "|---" * (len(report) + 1) + "|"]
    for stage in STAGES:
        cells = [f"{row['seconds'][stage]:.1f} ({row['processor_seconds'][stage]:.1f})" for row in report.values()]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "hub_configs" / "captioner-flickr8k", metavar="DIR")
    parser.add_argument("--photo", type=Path, default=DEFAULT_PIPELINE / "examples" / "dog.jpg", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    try:
        if args.repeats < 1:
            raise PictaleError("--repeats must be at least 1.")
        report = benchmark(args.model, args.photo, args.repeats)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
