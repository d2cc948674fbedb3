"""Export a captioner to ONNX, in three graphs: encoder and first state, once a photograph, and one step of the decoder.

    pip install onnx onnxscript onnxruntime
    python -m training.export_onnx hub_configs/captioner-flickr8k              # writes its folder onnx/
    python -m training.export_onnx my-captioner --output elsewhere/ --benchmark photos/
    python -m modeling photo.jpg --onnx

    encoder.onnx        pixel_values [B, 3, S, S] -> features [B, P, F]
    decoder_start.onnx  features [B, P, F] -> regions [B, P, C], keys [B, P, A], h [B, H], c [B, H]
    decoder_step.onnx   ids [R], regions [R, P, C], keys [R, P, A], h [R, H], c [R, H]
                        -> log_probs [R, V], h, c, attention [R, P]

B and R are free, the other sizes those of the model (letters as in `modeling.modeling_captioner`). `onnx.json` says
what grid the regions are and which weights this was. The graphs are run once with onnxruntime and compared with
the model before the folder gets its name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from modeling.errors import ModelFolderError, PictaleError
from modeling.images import load_image
from modeling.model_folder import load_component
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.onnx_captioner import ENCODER_FILE, FOLDER, META_FILE, START_FILE, STEP_FILE, OnnxCaptioner

from .model_card import fingerprint

TOLERANCE = 2e-3  # of log-probabilities and regions, after the BatchNorm statistics were folded in


class EncoderGraph(nn.Module):
    """The backbone, with its BatchNorm statistics folded in."""

    def __init__(self, model: PictaleCaptionerForConditionalGeneration):
        super().__init__()
        self.backbone = model.encoder.backbone.fuse().to(memory_format=torch.contiguous_format)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.backbone(pixel_values).flatten(2).transpose(1, 2)  # [B, F, h, w] -> [B, P, F]


class StartGraph(nn.Module):
    """What else is computed once a photograph."""

    def __init__(self, model: PictaleCaptionerForConditionalGeneration):
        super().__init__()
        self.projection, self.norm, self.keys = model.encoder.projection, model.encoder.norm, model.encoder.keys
        self.decoder = model.decoder

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        regions = self.norm(self.projection(features))  # [B, P, C]
        state = self.decoder.initial_state(regions)
        return regions, self.keys(regions), state.h, state.c


class StepGraph(nn.Module):
    """One word."""

    def __init__(self, model: PictaleCaptionerForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, regions: torch.Tensor, keys: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        decoder = self.model.decoder
        embedded = self.model.embed(ids)  # [R, E]
        h, c, z, alpha = decoder.step(decoder.word_projection(embedded), regions, keys, h, c)
        scores = self.model.word_scores(decoder.output(embedded, h, z))  # [R, V]
        return scores.log_softmax(-1), h, c, alpha


def export(source: str | Path, target: str | Path | None = None) -> Path:
    """Write the graphs of the captioner in `source` into `target` (its folder `onnx`), checked against the model.

    Raises:
        ModelFolderError: no captioner there, a part that ONNX cannot say, or packages missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelFolderError(f"The export needs {' and '.join(missing)}: pip install {' '.join(missing)}.")
    source = Path(source)
    target = Path(target) if target else source / FOLDER
    model = load_component(PictaleCaptionerForConditionalGeneration.from_pretrained, source, "captioner")
    model.float().eval().requires_grad_(False)
    writing = target.with_name(f"{target.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        _export_checked(model, source, writing)
        shutil.rmtree(target, ignore_errors=True)
        writing.rename(target)
    except OSError as error:
        raise ModelFolderError(f"The graphs of {source} cannot be written to {target} ({error}).") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return target


def _export_checked(model: PictaleCaptionerForConditionalGeneration, source: Path, writing: Path) -> None:
    """The files of an exported captioner in the folder `writing`, compared with the model."""
    torch.manual_seed(0)
    size = model.config.image_size
    encoder, start, step = EncoderGraph(model).eval(), StartGraph(model).eval(), StepGraph(model).eval()
    pixels = torch.randn(2, 3, size, size)
    features = encoder(pixels)
    regions, keys, h, c = start(features)
    ids = torch.tensor([model.config.bos_token_id, 4])
    try:
        _write(encoder, (pixels,), ["pixel_values"], ["features"], writing / ENCODER_FILE)
        _write(start, (features,), ["features"], ["regions", "keys", "h", "c"], writing / START_FILE)
        inputs = ["ids", "regions", "keys", "h", "c"]
        outputs = ["log_probs", "h_next", "c_next", "attention"]
        _write(step, (ids, regions, keys, h, c), inputs, outputs, writing / STEP_FILE)
    except Exception as error:  # the exporter has many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelFolderError(f"The captioner in {source} cannot be said in ONNX: {reason}") from error
    meta = {"grid": list(model.grid_size), "weights": fingerprint(source)}
    (writing / META_FILE).write_text(json.dumps(meta) + "\n", encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(source / name, writing / name)
    difference = compare((encoder, start, step), OnnxCaptioner.from_pretrained(writing))
    if not difference < TOLERANCE:
        raise ModelFolderError(f"The exported graphs of {source} differ from the model by {difference:.2g}.")


def _write(graph: nn.Module, inputs: tuple, names: list[str], outputs: list[str], path: Path) -> None:
    free = Dim("rows", min=1, max=65536)
    torch.onnx.export(
        graph,
        inputs,
        str(path),
        input_names=names,
        output_names=outputs,
        dynamic_shapes=tuple({0: free} for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def compare(graphs: tuple[EncoderGraph, StartGraph, StepGraph], exported: OnnxCaptioner) -> float:
    """Largest difference of any output between the model and its graphs, for another size of batch than exported."""
    encoder, start, step = graphs
    pixels = torch.randn(3, 3, exported.config.image_size, exported.config.image_size)
    features = encoder(pixels)
    first = start(features)
    ids = torch.arange(3) % exported.config.vocab_size
    pairs = [
        (features, exported.encoder.extract(pixels)),
        *zip(first, exported.encoder(region_features=features).to_tuple(), strict=True),
        *zip(step(ids, *first), exported.step(ids, *first), strict=True),
    ]
    return max(float((expected - got).abs().max()) for expected, got in pairs)


def benchmark(source: Path, exported: Path, photos: Path, repeats: int = 3) -> dict[str, float]:
    """Median milliseconds from pixels to captions of a photograph, beam 3: the model, and its graphs."""
    from modeling import PictaleImageProcessor

    processor = PictaleImageProcessor.from_pretrained(source)
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ModelFolderError(f"There are no photographs in {photos}.")
    pixels = [processor(load_image(path), return_tensors="pt").pixel_values for path in files]
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(source).prepare_for_inference()
    captioners = {"torch": model, "onnx": OnnxCaptioner.from_pretrained(exported)}
    times: dict[str, list[float]] = {name: [] for name in captioners}
    for _ in range(repeats + 1):  # the first round warms up; alternating, so that both see the same machine
        for photo in pixels:
            for name, captioner in captioners.items():
                start = time.perf_counter()
                captioner.generate(pixel_values=photo, num_beams=3)
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(ms[len(pixels) :]), 1) for name, ms in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="DIR", help="folder of a captioner")
    parser.add_argument("--output", metavar="DIR", help="(DIR/onnx)")
    parser.add_argument("--benchmark", metavar="PHOTOS", type=Path, help="folder of photographs to measure speed with")
    args = parser.parse_args()
    try:
        target = export(args.model, args.output)
        megabytes = sum(path.stat().st_size for path in target.iterdir()) / 2**20
        print(f"{target}: {megabytes:.1f} MiB, the same as the model to {TOLERANCE:g}")
        if args.benchmark:
            times = benchmark(Path(args.model), target, args.benchmark)
            print(json.dumps({"median_ms": times, "threads": torch.get_num_threads()}))
    except PictaleError as error:
        sys.exit(f"export_onnx: {error}")


if __name__ == "__main__":
    main()
