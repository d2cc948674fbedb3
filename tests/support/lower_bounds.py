"""Prints the requirements of requirements.txt at their lower ends, for `make lower-bounds`.

    pip install $(python tests/support/lower_bounds.py)

torch is left as it is: older releases for a processor alone are not on PyPI.
"""

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"


def lower_bounds(text: str) -> list[str]:
    """`name==version` for every line `name>=version,...`; torch keeps its range."""
    found = re.findall(r"(?m)^([\w-]+)>=([\w.]+)([^\s#]*)", text)
    return [f"{name}>={low}{rest}" if name == "torch" else f"{name}=={low}" for name, low, rest in found]


if __name__ == "__main__":
    print(" ".join(lower_bounds(REQUIREMENTS.read_text(encoding="utf-8"))))
