"""Give every model folder of hub_configs/ the code it needs to load by itself, copied from modeling/.

    python -m training.sync_code            copies what differs
    python -m training.sync_code --check    only says what differs (exit code 1)

A folder on the Hub is loaded with `trust_remote_code=True` by people who do not have this repository, so it must hold
the files that the `auto_map` of its configs names, and what those import.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")


def code_of(folder: Path) -> dict[str, str]:
    """Names and texts of the modules that the folder needs."""
    modules: set[Path] = set()
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            auto_map = json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map", {})
            for entry in auto_map.values():
                module = REPOSITORY / "modeling" / f"{entry.split('.')[0]}.py"
                modules |= {module, *map(Path, get_relative_import_files(module))}
    return {module.name: module.read_text(encoding="utf-8") for module in sorted(modules)}


def differing(root: Path) -> dict[Path, str]:
    """Files of the model folders below `root` that are not what they should be, with what they should hold."""
    wanted = {folder / name: text for folder in sorted(root.iterdir()) for name, text in code_of(folder).items()}
    return {path: t for path, t in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != t}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, only tell")
    args = parser.parse_args()
    changes = differing(REPOSITORY / "hub_configs")
    for path, text in changes.items():
        print(path.relative_to(REPOSITORY))
        if not args.check:
            path.write_text(text, encoding="utf-8")
    return 1 if args.check and changes else 0


if __name__ == "__main__":
    sys.exit(main())
