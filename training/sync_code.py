"""Give every model folder of hub_configs/ the code it needs to load by itself, copied from modeling/.

    python -m training.sync_code            copies what differs
    python -m training.sync_code --check    only says what differs (exit code 1)

A folder on the Hub is loaded with `trust_remote_code=True` by people who do not have this repository, so it must hold
the files that the `auto_map` and the `custom_pipelines` of its configs name, and what those import. A captioner is also
given its pipeline and its processor, which training does not write.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from modeling.pipeline_files import TRANSFORMERS_CONFIG

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
CAPTIONING = {
    "image-captioning": {"impl": "pipeline_captioning.ImageCaptioningPipeline", "pt": ["AutoModelForImageTextToText"]}
}
PROCESSOR = {
    "auto_map": {"AutoProcessor": "processing_captioner.PictaleCaptionerProcessor"},
    "processor_class": "PictaleCaptionerProcessor",
}


def configs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The configuration files that a folder should have, by name, with what training left out."""
    files = {name: folder / name for name in CONFIG_FILES if (folder / name).is_file()}
    configs = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    if configs.get("config.json", {}).get("model_type") == "pictale_captioner":
        configs["config.json"] |= {"custom_pipelines": CAPTIONING}
        if "preprocessor_config.json" in configs:
            configs.setdefault("processor_config.json", PROCESSOR)
    elif "config.json" not in configs and (folder / "pipeline.json").is_file():
        configs["config.json"] = TRANSFORMERS_CONFIG
    return configs


def contents_of(folder: Path) -> dict[str, str]:
    """Names and texts of the configuration files and modules that the folder needs."""
    contents, modules = {}, set()
    for name, config in configs_of(folder).items():
        path = folder / name
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != config:
            contents[name] = json.dumps(config, indent=2, sort_keys=True) + "\n"
        pipelines = [task["impl"] for task in config.get("custom_pipelines", {}).values()]
        for entry in [*config.get("auto_map", {}).values(), *pipelines]:
            module = REPOSITORY / "modeling" / f"{entry.split('.')[0]}.py"
            modules |= {module, *map(Path, get_relative_import_files(module))}
    return contents | {module.name: module.read_text(encoding="utf-8") for module in sorted(modules)}


def differing(folder: Path) -> dict[Path, str]:
    """Files of a model folder that are not what they should be, with what they should hold."""
    wanted = {folder / name: text for name, text in contents_of(folder).items()}
    return {path: t for path, t in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != t}


def complete(folder: Path) -> list[Path]:
    """Write what a model folder lacks or has in another version; returns the files written."""
    changes = differing(folder)
    for path, text in changes.items():
        path.write_text(text, encoding="utf-8")
    return list(changes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, only tell")
    args = parser.parse_args()
    changes = []
    for folder in sorted(path for path in (REPOSITORY / "hub_configs").iterdir() if path.is_dir()):
        changes += differing(folder) if args.check else complete(folder)
    for path in changes:
        print(path.relative_to(REPOSITORY))
    return 1 if args.check and changes else 0


if __name__ == "__main__":
    sys.exit(main())
