"""Publish a model folder on the Hub, once it is sure to work there.

    python -m training.push_to_hub my-captioner --repo-id you/my-captioner --license cc-by-4.0
    python -m training.push_to_hub hub_configs/captioner-flickr8k --repo-id you/captioner --private
    python -m training.push_to_hub my-captioner --repo-id you/my-captioner --dry-run --output staged/

A copy of the folder is completed (its code, its card) and checked: it loads and works in a process that has no Pictale
package, the card says what the Hub and a reader need, the figures are of these weights, no file is a pickle, none names
a path of your machine or a token, and it is not larger than --max-size. Then everything goes up in one commit. Log in
before with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from huggingface_hub import CommitInfo, ModelCard
from yaml import YAMLError

from modeling.errors import ModelFolderError, PictaleError
from modeling.model_folder import PIPELINE_FILE, check_weights, looks_like_hub_id, read_pipeline_file
from modeling.pipeline_files import commit_folder

from .model_card import first_card, read_figures, with_figures, write_text
from .sync_code import complete

LEFT_OUT = (
    *("__pycache__", ".git", ".cache", ".DS_Store", "*.writing"),
    *("checkpoints", "checkpoint-*", "*.log", "log.jsonl"),
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5")
TEXTS = (".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".csv", ".toml", ".py")
SECTIONS = {"Limits": "limits|limitations", "Licence": "licen[cs]e"}
OWN_PATH = re.compile(
    r"(?<![\w/.:~-])(?:/(?:home|Users|root|tmp|mnt|media|var|opt|srv|workspace|private|content|kaggle)/[\w.-]+"
    r"|[A-Za-z]:\\\\?[\w.-]+)"
)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


def stage(folder: Path, target: Path, repo_id: str, licence: str | None) -> None:
    """Put a complete copy of a model folder into `target`.

    Raises:
        ModelFolderError: it is no model folder, has a damaged configuration, or has no card and no licence was named to
            write one.
    """
    pipeline = (folder / PIPELINE_FILE).is_file()
    if not pipeline:
        check_weights(folder, "model")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
    parts = read_pipeline_file(folder)["components"].values() if pipeline else ()
    inside = [target / name for name in parts if name != "." and (target / name / "config.json").is_file()]
    for part in [target, *inside]:
        try:
            complete(part)
        except (ValueError, AttributeError, TypeError) as error:  # of JSON that is none, or no object
            raise ModelFolderError(f"A configuration file of {folder} is damaged ({error}).") from None
    card = target / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        if figures := read_figures(target):
            write_text(card, with_figures(text, repo_id.split("/")[-1], figures))
    elif licence is None:
        raise ModelFolderError(f"{folder} has no card (README.md): name a --license, and one is written.")
    else:
        write_text(card, first_card(target, repo_id, licence))


def problems(folder: Path, max_bytes: int) -> list[str]:
    """What speaks against publishing a staged folder, a sentence each."""
    found = card_problems(folder / "README.md")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix in PICKLES or _holds_pickle(path):
            found.append(f"{name} may run code when it is loaded: save weights as safetensors, data as JSON.")
        if path.suffix in TEXTS and path.stat().st_size < 50_000_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            if match := OWN_PATH.search(text):
                found.append(f"{name} names a path of this machine, {match[0]}: put a name that others have.")
            if TOKEN.search(text):
                found.append(f"{name} holds an access token: take it out, and revoke it.")
    size = sum(path.stat().st_size for path in files)
    if size > max_bytes:
        largest = max(files, key=lambda path: path.stat().st_size)
        found.append(
            f"The folder has {size / 2**20:.0f} MiB, more than {max_bytes / 2**20:.0f}: leave out what nobody needs "
            f"(the largest is {largest.relative_to(folder)}), or raise --max-size."
        )
    try:
        read_figures(folder)
    except ModelFolderError as error:
        found.append(str(error))
    return found


def _holds_pickle(path: Path) -> bool:
    """Whether the file is a pickle, or an array of numpy's or an archive (as torch writes) with one in it."""
    if path.suffix == ".safetensors":  # it begins with a length, which may look like a pickle
        return False
    with open(path, "rb") as file:
        head = file.read(6)
    if head == b"\x93NUMPY":
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            return True
        return False
    if head[:4] == b"PK\3\4" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def card_problems(path: Path) -> list[str]:
    """What a card lacks."""
    if not path.is_file():
        return ["There is no README.md."]
    try:
        card = ModelCard.load(path, ignore_metadata_errors=False)
    except (ValueError, YAMLError) as error:
        return [f"The front matter of README.md cannot be read: {str(error).splitlines()[0]}"]
    lacks = [f"`{key}`" for key in ("license", "library_name", "language", "tags") if not getattr(card.data, key, None)]
    for title, pattern in SECTIONS.items():
        if not re.search(f"(?mi)^#+ .*(?:{pattern})", card.text):
            lacks.append(f"a section '{title}'")
    if re.search(r"\bTODO\b|\[More Information Needed\]|\{\{", card.text):
        lacks.append("the places that are still to be filled in")
    return [f"The card lacks {', '.join(lacks)}."] if lacks else []


def trial(staged: Path, siblings: Path) -> str:
    """What the folder gives in a process of its own, without this package.

    Args:
        siblings: Where components of a pipeline are looked for that are not inside it.

    Raises:
        ModelFolderError: it does not load, or does not work.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "models", staged.name)
        shutil.copytree(staged, copy)
        if (staged / PIPELINE_FILE).is_file():
            for name in read_pipeline_file(staged)["components"].values():
                beside = siblings / name.rsplit("/", 1)[-1]
                if "@" not in name and not (copy / name).is_dir() and beside.is_dir():
                    shutil.copytree(beside, copy.parent / beside.name, dirs_exist_ok=True)
        program = shutil.copy(Path(__file__).with_name("hub_trial.py"), place)
        settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": f"{place}/modules"}
        run = subprocess.run(
            [sys.executable, program, str(copy)], cwd=place, env=settings, capture_output=True, text=True
        )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelFolderError(f"It does not work where this package is not: {reason[:300]}")
    return (run.stdout.strip().splitlines() or ["nothing, in no words"])[-1]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    licence: str | None = None,
    max_bytes: int = 2**31,
    output: Path | None = None,
    dry_run: bool = False,
) -> CommitInfo | None:
    """Stage, check, and upload; None with `dry_run`, which leaves the last step out.

    Raises:
        ModelFolderError: the folder should not be published as it is; the message has all reasons, or the first one
            that prevents looking further.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"There is no folder '{folder}'.")
    if not looks_like_hub_id(repo_id):
        raise ModelFolderError(f"'{repo_id}' is not a Hub id of the form 'name/model'.")
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place, repo_id.split("/")[-1])
        stage(folder, staged, repo_id, licence)
        if found := problems(staged, max_bytes):
            raise ModelFolderError("Not published. " + " ".join(found))
        print(f"{folder}: works on its own, gave: {trial(staged, folder.resolve().parent)}", file=sys.stderr)
        if output is not None:
            shutil.copytree(staged, output, dirs_exist_ok=True)
        if dry_run:
            return None
        hub = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
        return commit_folder(staged, repo_id, message or f"Upload {staged.name}", **hub)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="model or pipeline folder")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME")
    parser.add_argument("--private", action="store_true", default=None, help="where the repository is made: private")
    parser.add_argument("--create-pr", action="store_true", help="a pull request in place of a commit")
    parser.add_argument("--revision", help="branch to commit to (main)")
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--license", help="licence of the weights, where a card has to be written")
    parser.add_argument("--max-size", type=float, default=2048, metavar="MIB", help="(2048)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also keep what is uploaded here")
    parser.add_argument("--dry-run", action="store_true", help="check everything, upload nothing")
    args = parser.parse_args(argv)
    try:
        done = push(
            args.folder,
            args.repo_id,
            private=args.private,
            create_pr=args.create_pr,
            revision=args.revision,
            message=args.message,
            licence=args.license,
            max_bytes=int(args.max_size * 2**20),
            output=args.output,
            dry_run=args.dry_run,
        )
    except (PictaleError, OSError) as error:
        print(f"push_to_hub: {error}", file=sys.stderr)
        return 2
    print("nothing was uploaded" if done is None else done.pr_url or done.commit_url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
