"""A story pipeline and its files: loading, saving, and publishing it on the Hub.

A pipeline folder has a `pipeline.json`: its components by name, its styles, its options. A component is a folder inside
the pipeline or beside it, or a Hub id, if wished with a revision of its own (`org/model@v2`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_import_files

from .bookshelf import BOOKSHELF_FILE
from .errors import ModelFolderError
from .image_processing_captioner import PictaleImageProcessor
from .model_folder import (
    PIPELINE_FILE,
    component_folder,
    load_component,
    looks_like_hub_id,
    read_pipeline_file,
    resolve_pipeline,
)
from .modeling_captioner import PictaleCaptionerForConditionalGeneration
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .story_engine import StoryEngine
from .story_types import STORYTELLER, StoryOptions
from .styles import Style

if TYPE_CHECKING:
    from .pipeline_story import StoryPipeline

MODELS = {
    "captioner": PictaleCaptionerForConditionalGeneration,
    "encoder": PictaleSkipThoughtsEncoder,
}
DECODER, EMBEDDING = "decoder", "embedding"  # may be there or not
PARTS = (*MODELS, DECODER, EMBEDDING, STORYTELLER)
# what transformers reads of a pipeline folder; the modules are in the folder
TRANSFORMERS_CONFIG = {
    "architectures": ["PictaleStoryteller"],
    "auto_map": {
        "AutoConfig": "configuration_storyteller.PictaleStorytellerConfig",
        "AutoModel": "modeling_storyteller.PictaleStoryteller",
    },
    "custom_pipelines": {
        "image-to-story": {"impl": "pipeline_image_to_story.ImageToStoryPipeline", "pt": ["AutoModel"]}
    },
    "model_type": "pictale_storyteller",
}
CARD = """---
library_name: transformers
language: en
tags: [image-to-story, pictale]
---

# {name}

A Pictale pipeline: captions a photograph and tells a story about it.

```python
from transformers import pipeline

storyteller = pipeline("image-to-story", model="{place}", trust_remote_code=True)
print(storyteller("photo.jpg", style="{style}", seed=1)["story"])
```

With the package at hand: `StoryPipeline.from_pretrained("{place}")`. Styles: {styles}.
"""


class PipelineFiles:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of `StoryPipeline`."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
        device_map: str | torch.device | Mapping[str, str | torch.device] | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> StoryPipeline:
        """Load a pipeline: the embedded default, a folder, or a Hub repository.

        Args:
            name_or_path: Folder or Hub id; None: the embedded default.
            revision: Branch, tag or commit of the pipeline's repository. It does not hold for components in other
                repositories: `pipeline.json` may pin those, as `org/model@revision`.
            cache_dir, token, local_files_only: As huggingface_hub takes them, for all repositories.
            device: Where everything computes; None: the processor. `device_map` is another word for it and may also
                name a device for each component: `{"captioner": "cuda:0", "decoder": "cpu"}`.
            dtype: A torch dtype or its name; "auto" is each component's own.

        Raises:
            ModelFolderError: nothing there, or a file missing or damaged; the message names file and repository.
        """
        hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = resolve_pipeline(name_or_path, revision=revision, **hub)
        description = read_pipeline_file(folder)
        parts = [part for part in PARTS if part in MODELS or part in description["components"]]
        places = {part: component_folder(folder, description["components"][part], part, **hub) for part in parts}
        devices, dtype = _devices(device, device_map), _dtype(dtype)

        def tokenizer(part: str) -> Any:
            load = PreTrainedTokenizerFast.from_pretrained
            return load_component(load, places[part], f"{part}'s tokenizer", weights=False)

        models = {
            part: load_component(model.from_pretrained, places[part], part, dtype=dtype).to(devices[part])
            for part, model in MODELS.items()
        }
        decoder = {}
        if DECODER in places:
            load = PictaleStoryDecoderForConditionalGeneration.from_pretrained
            model = load_component(load, places[DECODER], DECODER, dtype=dtype).to(devices[DECODER])
            decoder = {"decoder": model, "decoder_tokenizer": tokenizer(DECODER)}
        pipe = cls(
            image_processor=load_component(
                PictaleImageProcessor.from_pretrained, places["captioner"], "image processor", weights=False
            ),
            caption_tokenizer=tokenizer("captioner"),
            encoder_tokenizer=tokenizer("encoder"),
            styles=[Style.load(folder / "styles" / f"{name}.safetensors") for name in description["styles"]],
            options=StoryOptions(**description.get("options", {})),
            bookshelf=folder / BOOKSHELF_FILE,
            storyteller=places.get(STORYTELLER),
            device=devices[STORYTELLER],
            **decoder,
            **models,
        )
        if EMBEDDING in places:
            pipe.load_embedding(places[EMBEDDING], devices["captioner"], dtype=dtype)
        return pipe

    def save_pretrained(self: StoryPipeline, folder: str | Path, repo_id: str | None = None) -> Path:
        """Write everything into one folder that can be moved or uploaded, and is loaded by `from_pretrained`.

        Args:
            folder: Where; files of the same names are replaced.
            repo_id: What its card calls it; None: the folder's name.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ModelFolderError(f"{folder} is a file: name a folder to save the pipeline in.")
        savers = {
            "captioner": (self.captioner, self.caption_tokenizer, self.image_processor),
            "encoder": (self.encoder, self.encoder.tokenizer),
        }
        if self.decoder is not None:
            savers[DECODER] = (self.decoder, self.decoder_tokenizer)
        if self.embedding is not None:
            savers[EMBEDDING] = (self.embedding, self.embedding.tokenizer)
        for part, things in savers.items():
            for thing in things:
                thing.save_pretrained(folder / part)
        for name, style in self._styles.items():
            style.save(folder / "styles" / f"{name}.safetensors")
        if self.can_retrieve:
            self.bank.save(folder / EMBEDDING)
        with contextlib.suppress(ModelFolderError):  # there is no bookshelf, or none for this encoder
            self.writers["bookshelf"].bookshelf.save(folder / BOOKSHELF_FILE)
        components = {part: part for part in savers}
        if self.storyteller is not None:
            place = self.storyteller.folder if isinstance(self.storyteller, StoryEngine) else self.storyteller
            _copy_folder(Path(place), folder / STORYTELLER)
            components[STORYTELLER] = STORYTELLER
        for module in ("modeling_storyteller", "pipeline_image_to_story"):
            copy_module(module, folder)
        _write(folder / "config.json", json.dumps(TRANSFORMERS_CONFIG, indent=2) + "\n")
        if not (folder / "README.md").exists():
            name = repo_id or folder.resolve().name
            styles = ", ".join(self.styles)
            card = CARD.format(name=name.split("/")[-1], place=name, style=next(iter(self.styles), ""), styles=styles)
            _write(folder / "README.md", card)
        usual = dataclasses.asdict(StoryOptions())
        options = {key: value for key, value in dataclasses.asdict(self.options).items() if value != usual[key]}
        description = {"components": components, "styles": list(self._styles), "options": options}
        _write(folder / PIPELINE_FILE, json.dumps(description, indent=2) + "\n")  # last: with it a folder is complete
        return folder

    def push_to_hub(
        self: StoryPipeline,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload story pipeline",
    ) -> CommitInfo:
        """Save, and upload in one commit. `python -m training.push_to_hub` checks a folder before it does so.

        Raises:
            ModelFolderError: `repo_id` is no Hub id.
        """
        if not looks_like_hub_id(repo_id):
            raise ModelFolderError(f"'{repo_id}' is not a Hub id of the form 'name/model'.")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id)
            hub = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
            return commit_folder(Path(folder), repo_id, commit_message, **hub)


def commit_folder(
    folder: Path,
    repo_id: str,
    message: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload a folder in one commit, into a repository that is made if there is none.

    Raises:
        ModelFolderError: the Hub refused it, or did not answer.
    """
    api = HfApi(token=token)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    adding = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # not upload_folder, which may make several commits of a large folder
        return api.create_commit(
            repo_id, adding, commit_message=message, revision=revision, create_pr=create_pr or None
        )
    except Exception as error:  # the Hub's client raises its own, httpx' and the file system's
        reason = (str(error).strip().splitlines() or [""])[-1][:200]
        raise ModelFolderError(
            f"The Hub did not take '{repo_id}' ({type(error).__name__}: {reason}): check the name, the connection, and "
            "that your token may write (`hf auth login`)."
        ) from error


def _copy_folder(source: Path, target: Path) -> None:
    """The files of a model folder, each under its name when it is whole."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.resolve() != (target / path.name).resolve():
            temporary = target / f"{path.name}.writing"
            shutil.copyfile(path, temporary)
            os.replace(temporary, target / path.name)


def copy_module(name: str, folder: Path) -> None:
    """Copy a module of this package, and all of the package that it imports, into a folder."""
    module = Path(__file__).with_name(f"{name}.py")
    for source in (module, *map(Path, get_relative_import_files(module))):
        shutil.copyfile(source, folder / source.name)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _devices(
    device: str | torch.device | None, device_map: str | torch.device | Mapping[str, str | torch.device] | None
) -> dict[str, str | torch.device]:
    """The device of each component."""
    if device is not None and device_map is not None:
        raise ModelFolderError("Give device or device_map, not both: they say the same.")
    placed = (*MODELS, DECODER, STORYTELLER)
    wanted = device_map if isinstance(device_map, Mapping) else dict.fromkeys(placed, device or device_map or "cpu")
    if unknown := set(wanted) - set(placed):
        raise ModelFolderError(f"device_map names {', '.join(sorted(unknown))}: components are {', '.join(placed)}.")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    return {part: best if (place := wanted.get(part, "cpu")) == "auto" else place for part in placed}


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if not isinstance(found := getattr(torch, str(dtype), None), torch.dtype):
        raise ModelFolderError(f"'{dtype}' is no dtype: use float32, bfloat16, float16 or auto.")
    return found
