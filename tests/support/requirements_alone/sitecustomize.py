"""With this folder on PYTHONPATH, Python finds no package but those that requirements.txt asks for.

    PYTHONPATH=tests/support/requirements_alone python -m pytest tests/test_loop.py

What such a process cannot import is not there on a new machine either, whatever else is installed on this one. Python
imports a module of this name by itself when it starts, in the processes that a test starts too.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements.txt"
# pip and setuptools lie in every new environment of Python 3.11
ALWAYS = {"pip", "setuptools"}


def plain(name: str) -> str:
    """The spelling in which names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Distributions that requirements.txt asks for, and all that these ask for in turn on this machine."""
    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    waiting = [Requirement(line) for line in lines if line]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wish = waiting.pop()
        for extra in ("", *wish.extras):
            if (plain(wish.name), extra) in seen:
                continue
            seen.add((plain(wish.name), extra))
            try:
                wanted = importlib.metadata.requires(wish.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            further = map(Requirement, wanted)
            waiting += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
    return ALWAYS | {name for name, _ in seen}


def optional() -> frozenset[str]:
    """Names of packages, as they are imported, that none of the required distributions holds."""
    there, wanted = importlib.metadata.packages_distributions(), required()
    return frozenset(name for name, owners in there.items() if not wanted & set(map(plain, owners)))


class Without:
    """A finder of modules that does not see some packages: they are not there, rather than broken."""

    def __init__(self, finder: object, names: frozenset[str]) -> None:
        self.finder, self.names = finder, names

    def find_spec(self, name: str, *arguments: object) -> object:
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self.finder, name)


hidden = optional()
sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
    del sys.modules[name]
