"""The captioner's exported graphs in the place of the captioner: `generate`, `score` and all that uses them.

The words are computed by onnxruntime, an optional package; the search over them is transformers' as ever. See
`training.export_onnx` for what the graphs take and give, and for the shape letters.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from .captioner_decoder import LSTMState
from .captioner_encoder import CaptionerEncoderOutput
from .configuration_captioner import PictaleCaptionerConfig
from .errors import ModelFolderError
from .modeling_captioner import CaptionerOutput, PictaleCaptionerForConditionalGeneration

FOLDER, META_FILE, WEIGHTS_FILE = "onnx", "onnx.json", "model.safetensors"
ENCODER_FILE, START_FILE, STEP_FILE = "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx"


@dataclass
class OnnxEncoderOutput(CaptionerEncoderOutput):
    """Args:
    h, c: the decoder's first state [B, H].
    """

    h: torch.FloatTensor | None = None
    c: torch.FloatTensor | None = None


class OnnxGraph(torch.nn.Module):
    """A graph as a module: tensors in, tensors out."""

    def __init__(self, path: Path):
        super().__init__()
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            raise ModelFolderError("Exported captioners need onnxruntime: pip install onnxruntime.") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = (runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]),)
        except Exception as error:  # onnxruntime's own, and the file system's
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ModelFolderError(f"{path} is missing or damaged ({reason}): export it again.") from None
        self.names = [entry.name for entry in self._session[0].get_inputs()]

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        feed = {name: value.detach().cpu().numpy() for name, value in zip(self.names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in self._session[0].run(None, feed)]


class OnnxEncoder(torch.nn.Module):
    """What is computed once a photograph."""

    main_input_name = "pixel_values"

    def __init__(self, folder: Path):
        super().__init__()
        self.backbone, self.start = OnnxGraph(folder / ENCODER_FILE), OnnxGraph(folder / START_FILE)

    def extract(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Region features [B, P, F] of pixel_values [B, 3, H, W]."""
        return self.backbone(pixel_values.float())[0]

    def forward(
        self, pixel_values: torch.Tensor | None = None, region_features: torch.Tensor | None = None, **kwargs: Any
    ) -> OnnxEncoderOutput:
        features = self.extract(pixel_values) if region_features is None else region_features
        return OnnxEncoderOutput(*self.start(features))


class OnnxCaptioner(PreTrainedModel, GenerationMixin):
    """A captioner whose numbers onnxruntime computes, on the processor.

    Example:
        >>> captioner = OnnxCaptioner.from_pretrained("hub_configs/captioner-flickr8k/onnx")
        >>> captioner.generate(pixel_values=pixels, num_beams=3)
    """

    config_class = PictaleCaptionerConfig
    main_input_name = "pixel_values"
    score = PictaleCaptionerForConditionalGeneration.score

    def __init__(self, config: PictaleCaptionerConfig, folder: Path):
        super().__init__(config)
        self.encoder, self.step = OnnxEncoder(folder), OnnxGraph(folder / STEP_FILE)
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            self.grid_size, self.weights = tuple(meta["grid"]), meta["weights"]
            self.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFolderError(f"{folder} is damaged ({type(error).__name__}): export it again.") from None
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> OnnxCaptioner:
        """Load what `python -m training.export_onnx` wrote.

        Raises:
            ModelFolderError: it is not there or damaged, or onnxruntime is missing.
        """
        folder = Path(folder)
        if not (folder / META_FILE).is_file():
            raise ModelFolderError(
                f"There is no exported captioner in {folder}: make one with "
                "`python -m training.export_onnx CAPTIONER_FOLDER`."
            )
        return cls(PictaleCaptionerConfig.from_pretrained(folder), folder)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is an LSTMState

    def get_encoder(self, *args, **kwargs) -> OnnxEncoder:
        return self.encoder

    def prepare_for_inference(self) -> OnnxCaptioner:
        return self

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Refused: the graphs are not weights.

        Raises:
            ModelFolderError: always.
        """
        raise ModelFolderError("Exported graphs cannot be saved as a captioner: load the pipeline again and save that.")

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs):
        if kwargs.get("encoder_outputs") is not None:  # beam search repeats its entries in place: not the caller's
            kwargs["encoder_outputs"] = OnnxEncoderOutput(**kwargs["encoder_outputs"])
        return super().generate(inputs, **kwargs)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: OnnxEncoderOutput | None = None,
        image_index: torch.LongTensor | None = None,
        cache: LSTMState | None = None,
        past_key_values: LSTMState | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> CaptionerOutput:
        """As the captioner's, for whole captions or, with `cache`, their newest word [R, 1]."""
        encoded = self.encoder(pixel_values) if encoder_outputs is None else encoder_outputs
        parts = [encoded[name] for name in ("last_hidden_state", "attention_keys", "h", "c")]
        if image_index is not None:
            parts = [part.index_select(0, image_index) for part in parts]
        regions, keys, h, c = parts
        seen = 0
        if (before := past_key_values if cache is None else cache) is not None:
            h, c, seen = before.h, before.c, before.seen
        scores, maps = [], []
        for ids in decoder_input_ids.unbind(1):
            log_probs, h, c, alpha = self.step(ids, regions, keys, h, c)
            scores.append(log_probs)
            maps.append(alpha)
        return CaptionerOutput(
            logits=torch.stack(scores, 1),  # [R, T, V]
            cache=LSTMState(h, c, seen + len(scores)),
            encoder_last_hidden_state=regions,
            cross_attentions=(torch.stack(maps, 1).unsqueeze(1),) if output_attentions else None,  # [R, 1, T, P]
        )


def load_exported(
    captioner: PictaleCaptionerForConditionalGeneration, folder: str | Path | None = None
) -> OnnxCaptioner:
    """The exported twin of a captioner that was loaded from a folder, by default from the folder `onnx` in that.

    Raises:
        ModelFolderError: there is none, it is of other weights, or onnxruntime is not installed.
    """
    source = Path(captioner.config.name_or_path)
    exported = OnnxCaptioner.from_pretrained(folder or source / FOLDER)
    if (source / WEIGHTS_FILE).is_file() and fingerprint(source / WEIGHTS_FILE) != exported.weights:
        raise ModelFolderError(
            f"The exported captioner in {folder or source / FOLDER} is of other weights than {source}: export it again "
            "with `python -m training.export_onnx`."
        )
    return exported


def fingerprint(path: Path) -> str:
    """First 16 digits of a file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
