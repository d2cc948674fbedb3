"""The state in the output of a recurrent decoder, by the name under which `generate()` looks for it.

transformers 5.24 renamed `past_key_values` to `cache`, in outputs and in what it gives to `forward`. Here it is `cache`
with every version; for the ones before, the output also has it by its old name. (From 5.24 on transformers itself
answers `output.past_key_values`.)
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import GenerationMixin
from transformers.utils import ModelOutput

_OLD_NAME = "past_key_values"
_IS_OLD = "cache" not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


class RecurrentOutput(ModelOutput):
    """Base of outputs (dataclasses) with a field `cache`."""

    cache: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if _IS_OLD and self.cache is not None:
            self[_OLD_NAME] = self.cache
