"""Recipes: the one JSON file that is a training script's argument.

A recipe has one object per section (`model`, `data`, `training`, ...), each checked against a dataclass, so that a
misspelt key is an error and not a silent default. Any value can be replaced on the command line:

    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe.json --set training.max_steps=100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from modeling.errors import RecipeError

Recipe = TypeVar("Recipe")


def read_recipe(path: str | Path, cls: type[Recipe], overrides: list[str] | None = None) -> Recipe:
    """Read `path` into the recipe dataclass `cls`, applying `section.key=value` overrides.

    Raises:
        RecipeError: the file is missing or not JSON, a key is unknown or missing, or an override is malformed.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}. Give the path of a recipe.json.") from None
    except ValueError as error:
        raise RecipeError(f"The recipe {path} is not valid JSON ({error}).") from None
    for override in overrides or []:
        apply_override(raw, override)
    return from_dict(cls, raw, str(path))


def write_recipe(recipe: Any, path: str | Path) -> None:
    """Write a recipe dataclass so that `read_recipe` gives it back."""
    path = Path(path)
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(json.dumps(dataclasses.asdict(recipe), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in `raw`; the value is JSON where it parses as JSON, else a string."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set takes section.key=value, not '{override}'.")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"--set {override}: '{section}' is not a section.")
    raw[last] = value


def from_dict(cls: type[Recipe], raw: dict[str, Any], where: str) -> Recipe:
    """Build dataclass `cls` from a dict, nested dataclasses included; unknown and missing keys are errors."""
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected an object, found {type(raw).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise RecipeError(f"{where}: unknown key '{unknown[0]}'; known keys are {', '.join(sorted(fields))}.")
    values = {}
    for name, field in fields.items():
        nested = _nested_dataclass(cls, name)
        if name in raw:
            absent = raw[name] is None and field.default is None
            values[name] = from_dict(nested, raw[name], f"{where}: {name}") if nested and not absent else raw[name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where}: the key '{name}' is missing.")
    return cls(**values)


def _nested_dataclass(cls: type, name: str) -> type | None:
    import typing

    hint = typing.get_type_hints(cls).get(name)
    for one in (hint, *typing.get_args(hint)):  # a section may be optional: `Section | None`
        if isinstance(one, type) and dataclasses.is_dataclass(one):
            return one
    return None


def dataset_location(name: str) -> str:
    """Where a dataset named in a recipe lies: `$PICTALE_DATA/<name>` if that exists, else the name itself.

    The name itself is a local folder or a Hub dataset id, whatever `datasets.load_dataset` takes.
    """
    root = os.environ.get("PICTALE_DATA")
    if root and (Path(root) / name).exists():
        return str(Path(root) / name)
    return name


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """The command line shared by the training scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe.json of a folder in hub_configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        help="replace one value of the recipe (repeatable)",
    )
    return parser
