"""The endpoints as tools of an MCP server, where `pip install "gradio[mcp]"` was run."""

import ast
import asyncio
import base64
import json
import sys

import pytest
from gradio_client import Client

import app
from tests.fakes import FakePipeline
from tests.serving import served

TOOLS = ["caption_photo", "continue_story", "predict", "style_from_text", "tell_story"]


def test_without_the_extra_the_page_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)  # as if it were not installed
    assert not app.has_mcp()
    with served(app.Page(FakePipeline).blocks, mcp_server=app.has_mcp()) as url:
        assert "/tell" in Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]


@pytest.fixture(scope="module")
def url():
    pytest.importorskip("mcp", reason='the extra "gradio[mcp]" is not installed')
    with served(app.Page(lambda: pipeline).blocks, mcp_server=app.has_mcp()) as url:
        yield url


pipeline = FakePipeline(words=8)


def ask(url: str, what):
    """The answer to a question that a client of MCP puts to the server."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def session():
        async with streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as it:
            await it.initialize()
            return await what(it)

    return asyncio.run(session())


def call(url: str, tool: str, **arguments):
    result = ask(url, lambda session: session.call_tool(tool, arguments))
    text = "".join(part.text for part in result.content if part.type == "text")
    return result.isError, text


def test_extra_can_be_turned_off(url, monkeypatch):
    assert app.has_mcp()
    monkeypatch.setenv("GRADIO_MCP_SERVER", "False")
    assert not app.has_mcp()


def test_every_tool_and_every_argument_is_described(url):
    tools = ask(url, lambda session: session.list_tools()).tools
    assert sorted(tool.name for tool in tools) == TOOLS
    for tool in tools:
        assert len(tool.description.split()) >= 8, tool.name
        for name, argument in tool.inputSchema["properties"].items():
            assert len(argument.get("description", "").split()) >= 3, (tool.name, name)


def test_tools_work(url, example_photos):
    photo = "data:image/jpeg;base64," + base64.b64encode(example_photos[0].read_bytes()).decode()
    failed, text = call(url, "caption_photo", photo=photo)
    assert not failed and "a thing of colour" in text
    failed, text = call(url, "tell_story", photo=photo, style="horror", seed=7)
    assert not failed and "Seed 7" in text and "word7" in text
    record = ast.literal_eval(text)["record"]  # gradio gives results as Python writes them
    failed, text = call(url, "continue_story", story=json.dumps(record), sentence="Then it rained.", seed=8)
    assert not failed, text
    assert "Then it rained." in text and "Seed 8" in text


def test_errors_are_sentences(url, example_photos):
    photo = "data:image/jpeg;base64," + base64.b64encode(b"no photo at all").decode()
    failed, text = call(url, "tell_story", photo=photo)
    assert failed and "is not a photo" in text and "Traceback" not in text
