"""The captioner's exported graphs in the place of the captioner: `generate`, `score` and all that uses them.

The words are computed by onnxruntime, an optional package; the search over them is transformers' as ever. See
`training.export_onnx` for what the graphs take and give, and for the shape letters.
"""

from __future__ import annotations

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

FOLDER, META_FILE = "onnx", "onnx.json"
ENCODER_FILE, STEP_FILE = "encoder.onnx", "decoder_step.onnx"


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


class OnnxEncoder(OnnxGraph):
    main_input_name = "pixel_values"

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> OnnxEncoderOutput:
        return OnnxEncoderOutput(*super().forward(pixel_values.float().contiguous()))


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
        self.encoder, self.step = OnnxEncoder(folder / ENCODER_FILE), OnnxGraph(folder / STEP_FILE)
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        self.grid_size, self.weights = tuple(meta["grid"]), meta["weights"]
        self.generation_config = GenerationConfig.from_pretrained(folder)
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
        past_key_values: LSTMState | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> CaptionerOutput:
        """As the captioner's, for whole captions or, with `past_key_values`, their newest word [R, 1]."""
        encoded = self.encoder(pixel_values) if encoder_outputs is None else encoder_outputs
        parts = [encoded[name] for name in ("last_hidden_state", "attention_keys", "h", "c")]
        if image_index is not None:
            parts = [part.index_select(0, image_index) for part in parts]
        regions, keys, h, c = parts
        seen = 0
        if past_key_values is not None:
            h, c, seen = past_key_values.h, past_key_values.c, past_key_values.seen
        scores, maps = [], []
        for ids in decoder_input_ids.unbind(1):
            log_probs, h, c, alpha = self.step(ids, regions, keys, h, c)
            scores.append(log_probs)
            maps.append(alpha)
        return CaptionerOutput(
            logits=torch.stack(scores, 1),  # [R, T, V]
            past_key_values=LSTMState(h, c, seen + len(scores)),
            encoder_last_hidden_state=regions,
            cross_attentions=(torch.stack(maps, 1).unsqueeze(1),) if output_attentions else None,  # [R, 1, T, P]
        )
