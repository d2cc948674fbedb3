"""With requirements.txt alone every module and every test file can be imported: whatever only training, a browser or a
judge needs is imported where it is used, and a test that needs it is skipped by name."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from training import evaluate_sentences

ALONE = REPOSITORY / "tests" / "support" / "requirements_alone"
EVERYTHING = """
import importlib, pkgutil, sys
import pytest

code = pytest.main(["--collect-only", "-qq", "--tb=line", "-p", "no:cacheprovider"])
import app, modeling, tests, training
for package in (modeling, training, tests):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.rpartition(".")[2] not in ("__main__", "hub_trial") and "test_" not in module.name:
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                print(f"{module.name}: {error}")
                code = code or 1
sys.exit(code)
"""


def alone(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """A Python that finds what requirements.txt asks for, and nothing else in `path` or in this environment."""
    hidden = {"PYTEST_ADDOPTS", "PYTEST_PLUGINS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ALONE), path)))}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins would be imported by name
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )


def test_what_nobody_requires_is_not_found(tmp_path):
    """Neither a package of another distribution nor its name; what is required, and what that requires, is."""
    (tmp_path / "extra_thing").mkdir()
    (tmp_path / "extra_thing" / "__init__.py").write_text("")
    (tmp_path / "extra_thing-1.0.dist-info").mkdir()
    (tmp_path / "extra_thing-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-thing\n")
    (tmp_path / "extra_thing-1.0.dist-info" / "RECORD").write_text("extra_thing/__init__.py,,\n")
    program = "import importlib.util as u; print([n for n in ('numpy', 'tqdm', 'extra_thing') if u.find_spec(n)])"
    assert alone("-c", program, path=str(tmp_path)).stdout.strip() == "['numpy', 'tqdm']"
    assert "No module named 'extra_thing'" in alone("-c", "import extra_thing", path=str(tmp_path)).stderr


@pytest.mark.slow
def test_every_test_file_is_collected_and_every_module_imported():
    run = alone("-c", EVERYTHING)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-1000:]}"


def test_a_command_that_needs_more_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluate_sentences.importlib.util, "find_spec", lambda name: None)
    assert evaluate_sentences.main(["--model", str(tmp_path), "--data", str(tmp_path)]) == 2
    said = "Error: Sentence tasks are scored with scikit-learn: pip install -r training/requirements.txt.\n"
    assert capsys.readouterr().err == said


MINI = """
import os, pytest

@pytest.mark.parametrize("text", ["a b", "ü[x]", "1::2"])
def test_each(text):
    pass

@pytest.mark.skipif("EXTRA" not in os.environ, reason="extra is not installed")
@pytest.mark.parametrize("number", range(2))
def test_more(number):
    pass

@pytest.fixture
def dirty():
    yield
    assert "EXTRA" in os.environ

def test_left_dirty(dirty):
    pass
"""


def test_a_second_pass_runs_what_the_first_did_not(tmp_path):
    """Tests that were skipped, in files that were skipped as a whole too, and those that failed; nothing else."""
    (tmp_path / "test_mini.py").write_text(MINI, encoding="utf-8")
    skipped = 'import os, pytest\nif "EXTRA" not in os.environ:\n    pytest.skip("no extra", allow_module_level=True)\n'
    (tmp_path / "test_whole.py").write_text(f"{skipped}def test_all():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir=.", "-rA", "."]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}

    def run(*options: str, **more: str) -> set[str]:
        said = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment | more, capture_output=True, encoding="utf-8"
        ).stdout
        return {line.removeprefix("PASSED ") for line in said.splitlines() if line.startswith("PASSED ")}

    run("--passed-to=passed")
    first = set((tmp_path / "passed").read_text(encoding="utf-8").splitlines())
    assert len(first) == 3 and all(name.startswith("test_mini.py::test_each[") for name in first)
    assert run("--without=passed", EXTRA="1") == {
        "test_mini.py::test_more[0]",
        "test_mini.py::test_more[1]",
        "test_mini.py::test_left_dirty",
        "test_whole.py::test_all",
    }
