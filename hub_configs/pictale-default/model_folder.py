"""Find and load the parts of a pipeline, and say in one sentence what is wrong with a folder that does not load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, errors, snapshot_download
from safetensors import SafetensorError, safe_open

from .errors import ModelFolderError

PIPELINE_FILE = "pipeline.json"
DEFAULT_PIPELINE = Path(__file__).resolve().parent.parent / "hub_configs" / "pictale-default"
Loaded = TypeVar("Loaded")


def resolve_pipeline(name_or_path: str | Path | None, **hub: Any) -> Path:
    """Local folder of a pipeline; a Hub repository is downloaded into the Hub's cache.

    Args:
        name_or_path: Folder, Hub id, or None for the embedded default.
        hub: `revision`, `cache_dir`, `token`, `local_files_only` as huggingface_hub takes them.

    Raises:
        ModelFolderError: no such folder or repository, or it is not a pipeline.
    """
    folder = DEFAULT_PIPELINE if name_or_path is None else Path(name_or_path)
    if not folder.is_dir():
        folder = download(str(name_or_path), **hub)
    if not (folder / PIPELINE_FILE).is_file():
        hint = " It holds a single model: load that with its own class." if (folder / "config.json").exists() else ""
        raise ModelFolderError(f"{described(folder)} is not a pipeline: it has no {PIPELINE_FILE}.{hint}")
    return folder


def looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def download(name: str, what: str = "pipeline", **hub: Any) -> Path:
    """Local copy of a Hub repository.

    Args:
        name: Its id, which may end in `@` and a revision of its own.
        what: The part of a pipeline that it is, for messages.
        hub: `revision`, `cache_dir`, `token`, `local_files_only` as huggingface_hub takes them.

    Raises:
        ModelFolderError: it cannot be had; the message says why and what to do.
    """
    repo_id, _, own_revision = name.partition("@")
    if not looks_like_hub_id(repo_id):
        raise ModelFolderError(
            f"There is no folder '{name}', and it is not a Hub id of the form 'name/model' (wanted as {what})."
        )
    hub["revision"] = own_revision or hub.get("revision")
    try:
        return Path(snapshot_download(repo_id, ignore_patterns=["*.onnx", "*.onnx.data"], **hub))
    except Exception as error:  # the Hub's client raises its own, httpx' and the file system's
        raise ModelFolderError(f"Cannot get the {what} '{repo_id}' from the Hub: {_why(error, repo_id, hub)}") from None


def _why(error: Exception, repo_id: str, hub: dict[str, Any]) -> str:
    """What happened, and what to do about it."""
    revision = hub.get("revision") or "main"
    offline = hub.get("local_files_only") or constants.HF_HUB_OFFLINE
    if isinstance(error, errors.GatedRepoError):
        return f"its owner must grant access first; ask on its page {constants.ENDPOINT}/{repo_id}, then log in."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision '{revision}'; leave it out, or take a branch, tag or commit of its history."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is none of that name, or it is private; check the name, or log in (`hf auth login`, or token=)."
    if offline and isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            f"only local files were allowed, and the cache has no whole copy of revision '{revision}'; run "
            f"`hf download {repo_id} --revision {revision}` once with a connection, or give a local folder."
        )
    return f"no answer ({type(error).__name__}); check the connection, or give a local folder."


def read_pipeline_file(folder: Path) -> dict[str, Any]:
    """The pipeline's description: `components` (name -> Hub id or folder) and `options`."""
    try:
        description = json.loads((folder / PIPELINE_FILE).read_text(encoding="utf-8"))
        components = description["components"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{folder / PIPELINE_FILE} is damaged ({type(error).__name__}): download it again."
        ) from None
    missing = {"captioner", "encoder"} - set(components)
    if missing:
        raise ModelFolderError(f"{folder / PIPELINE_FILE} names no {', '.join(sorted(missing))}.")
    return description


def component_folder(pipeline: Path, name: str, what: str = "component", **hub: Any) -> Path:
    """Folder of a component that `pipeline.json` calls `name`.

    A Hub id `org/model` is looked for as a folder inside the pipeline, then beside it (this is how hub_configs/ lies in
    the repository), then on the Hub; `org/model@revision` is always that revision from the Hub.
    """
    return local_component(pipeline, name) or download(name, what, **hub)


def local_component(pipeline: Path, name: str) -> Path | None:
    """The folder of a component inside the pipeline or beside it, if it is there."""
    base = name.rsplit("/", 1)[-1]
    places = () if "@" in name else (pipeline / name, pipeline / base, pipeline.parent / base)
    return next((place for place in places if place.is_dir()), None)


def described(folder: Path) -> str:
    """A folder as a message calls it: a copy of a Hub repository by its id and revision too."""
    repo, _, revision = folder.as_posix().partition("/snapshots/")
    if revision and "models--" in repo:
        repo_id = repo.rsplit("models--", 1)[-1].replace("--", "/")
        return f"'{repo_id}' (revision {revision.split('/')[0][:12]}, in {folder})"
    return str(folder)


def load_component(load: Callable[..., Loaded], folder: Path, what: str, weights: bool = True, **kwargs: Any) -> Loaded:
    """`load(folder)` with every failure turned into a sentence.

    Raises:
        ModelFolderError: a file is missing or damaged.
    """
    if weights:
        check_weights(folder, what)
    try:
        return load(folder, **kwargs)
    except Exception as error:  # transformers raises many kinds for a damaged folder; the first line tells what
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelFolderError(
            f"The {what} in {described(folder)} cannot be loaded ({type(error).__name__}: {reason[:200]}): "
            "its files are damaged or of another version; download them again."
        ) from error


def check_weights(folder: Path, what: str) -> None:
    """Raise ModelFolderError unless the folder has a config and whole safetensors weights."""
    for name in ("config.json", "model.safetensors"):
        if name == "model.safetensors" and (folder / f"{name}.index.json").is_file():
            continue  # sharded
        if not (folder / name).is_file():
            raise ModelFolderError(f"The {what} {described(folder)} has no {name}: download it again, or train it.")
    for shard in folder.glob("*.safetensors"):
        try:
            with safe_open(shard, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{shard} is damaged ({error}): download or copy it again.") from None
