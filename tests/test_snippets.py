"""The code in README's section "Use it in your code" and at the head of each model card runs as it stands."""

import re

import pytest

from tests.conftest import REPOSITORY

SECTION = "#### Use it in your code"


def blocks(text: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", text)


def section(text: str) -> str:
    after = text.split(f"{SECTION}\n", 1)[1]
    return re.split(r"(?m)^#+ ", after, maxsplit=1)[0]


def cases():
    snippets = blocks(section((REPOSITORY / "README.md").read_text()))
    yield from (pytest.param(code, id=f"README-{i}") for i, code in enumerate(snippets))
    for card in sorted((REPOSITORY / "hub_configs").glob("*/README.md")):
        if (found := blocks(card.read_text())) and (card.parent / "config.json").is_file():
            yield pytest.param(found[0], id=card.parent.name)


@pytest.mark.parametrize("code", list(cases()))
def test_a_snippet_runs(code, example_photos, tmp_path, monkeypatch, capsys, request):
    if "pictale-default" in code or "StoryPipeline" in code:
        request.getfixturevalue("shipped_storyteller")
    if "AutoModelForCausalLM" in code and "storyteller-smollm2" in code:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: it reads the 8 bits")
    for extra in re.findall(r"(?m)^from (sklearn|onnxruntime)", code):
        pytest.importorskip(extra, reason=f"{extra} is not installed, which this snippet is about")
    (tmp_path / "hub_configs").symlink_to(REPOSITORY / "hub_configs")
    (tmp_path / "photo.jpg").write_bytes(example_photos[0].read_bytes())
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(example_photos[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    assert "print(" not in code or capsys.readouterr().out.strip()


def test_the_section_is_there():
    snippets = blocks(section((REPOSITORY / "README.md").read_text()))
    said = "\n".join(snippets)
    for word in ("image-captioning", "image-to-story", "AutoProcessor", "save_pretrained", "encode"):
        assert word in said
