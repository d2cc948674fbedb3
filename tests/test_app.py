"""The page as a program meets it: endpoints, streaming, and a sentence for every bad input."""

import base64
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from modeling import Story, StoryPipeline, load_image
from modeling.page_programs import describe
from tests.fakes import STYLES, FakePipeline
from tests.serving import REPOSITORY, served
from tests.tiny import BOOK, save_tiny_pipeline, tiny_embedding, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline(words=12)


@pytest.fixture(scope="module")
def url(pipeline):
    with served(app.Page(lambda: pipeline).blocks) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


def refusal(client: Client, *arguments, api_name: str = "/tell", **keywords) -> str:
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, api_name=api_name, **keywords)
    return str(caught.value)


def test_what_is_public(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/caption", "/tell", "/continue_story", "/make_style", "/predict"}
    names = [parameter["parameter_name"] for parameter in endpoints["/tell"]["parameters"]]
    assert names == ["photo", "style", "seed", "strength", "length", "style_file", "captions", "writer"]


def test_caption(client, pipeline, example_photos):
    result = client.predict(handle_file(example_photos[0]), api_name="/caption")
    expected = pipeline.caption([load_image(example_photos[0])])[0]
    assert [caption["text"] for caption in result] == [caption.text for caption in expected]
    assert all(math.isclose(caption["score"], -0.5) for caption in result)


def test_captions_from_memory(client, example_photos, pipeline):
    photo = handle_file(example_photos[0])
    written = client.predict(photo, api_name="/caption")
    remembered = client.predict(photo, "retrieve", api_name="/caption")
    assert [caption["remembered"] for caption in written + remembered] == [False] * 3 + [True] * 3
    assert remembered[0] == {"text": "Something like thing.", "score": 0.5, "remembered": True}
    assert client.predict(photo, "both", api_name="/caption") == written + remembered
    told = client.predict(photo, "horror", 7, captions="retrieve", api_name="/tell")
    assert told["captions"] == remembered
    assert pipeline.calls[-1]["given"] == [caption["text"] for caption in remembered]
    more = client.predict(told["record"], photo, seed=8, captions="both", api_name="/continue_story")
    assert more["captions"] == written + remembered
    assert "generate or retrieve or both" in refusal(client, photo, "guess", api_name="/caption")


def test_two_photos_two_captions(client, example_photos):
    first, second = (client.predict(handle_file(path), api_name="/caption") for path in example_photos[:2])
    assert first[0]["text"] != second[0]["text"]


def test_tell_streams_and_ends_with_the_whole_story(client, example_photos):
    job = client.submit(handle_file(example_photos[0]), "horror", 7, api_name="/tell")
    final = job.result()
    steps = [output for output in job.outputs() if isinstance(output, dict)]
    assert len(steps) > 5
    assert all(later["story"].startswith(earlier["story"]) for earlier, later in zip(steps, steps[1:], strict=False))
    assert (final["style"], final["seed"]) == ("horror", 7)
    assert final["story"].startswith("Seed 7, strength 1: a thing of colour") and final["title"] == "Title 7"
    assert [caption["remembered"] for caption in final["captions"]] == [False] * 3 + [True] * 3


def test_seed_repeats_and_is_drawn_where_none_is_given(client, example_photos):
    photo = handle_file(example_photos[0])
    drawn = client.predict(photo, api_name="/tell")
    assert drawn["style"] == "everyday"
    assert client.predict(photo, "everyday", drawn["seed"], api_name="/tell")["story"] == drawn["story"]
    assert client.predict(photo, api_name="/tell")["seed"] != drawn["seed"]


def test_wishes_of_a_program(client, example_photos, pipeline):
    photo = handle_file(example_photos[0])
    told = client.predict(photo, "romance:0.7,horror:0.3", 5, 1.5, "Long", api_name="/tell")
    assert told["style"] == "romance:0.7,horror:0.3"
    assert (pipeline.calls[-1]["options"].strength, pipeline.calls[-1]["options"].length) == (1.5, "long")
    assert "Short, Medium, Long" in refusal(client, photo, length="Endless")
    assert "strength" in refusal(client, photo, strength=99)
    assert "no writer 'org/model'" in refusal(client, photo, writer="org/model")  # nothing is downloaded for a visitor
    told = client.predict(photo, writer="bookshelf", api_name="/tell")
    assert pipeline.calls[-1]["options"].writer == "bookshelf"
    client.predict(told["record"], writer="bookshelf", api_name="/continue_story")
    assert pipeline.calls[-1]["options"].writer == "bookshelf"


def test_continue_story(client, example_photos, pipeline):
    first = client.predict(handle_file(example_photos[0]), "horror", 7, api_name="/tell")
    job = client.submit(
        first["record"], handle_file(example_photos[1]), "It was <b>late</b>.", seed=8, api_name="/continue_story"
    )
    final = job.result()
    assert len(job.outputs()) > 5
    assert final["story"].startswith(first["story"] + "\n\nIt was <b>late</b>.\n\nSeed 8,")
    assert (final["style"], final["seed"]) == ("horror", 8)
    assert final["captions"] != first["captions"]
    again = client.predict(final["record"], seed=9, api_name="/continue_story")
    assert again["story"].startswith(final["story"]) and again["title"] == first["title"] == "Title 7"
    assert len(Story.from_json(json.dumps(again["record"])).passages) == 4
    assert "not a story of Pictale" in refusal(client, {"a": 1}, api_name="/continue_story")


def test_make_style(client, example_photos, tmp_path, pipeline):
    book = tmp_path / "book.txt"
    book.write_text(BOOK)
    made, file = client.predict(handle_file(book), name="aunt may", api_name="/make_style")
    assert (made["name"], made["source"]) == ("aunt may", "book.txt")
    photo = handle_file(example_photos[0])
    told = client.predict(photo, "aunt may:0.5,horror:0.5", 1, style_file=handle_file(file), api_name="/tell")
    assert told["style"] == "aunt may:0.5,horror:0.5"
    assert (pipeline.calls[-1]["style"] == (made["passages"] + 100) / 2).all()
    assert pipeline.calls[-1]["own"].name == "aunt may:0.5,horror:0.5"  # whose pages the storyteller may be shown
    assert "aunt may" in refusal(client, photo, "aunt may", 1)  # it was this call's alone
    assert "aunt may" not in pipeline.styles
    assert client.predict(text=BOOK, name="me", api_name="/make_style")[0]["passages"] == made["passages"]
    for arguments, words in (
        ({"text": "Too short."}, "at least 20"),
        ({}, "no text yet"),
        ({"text": BOOK, "name": "horror"}, "already"),
    ):
        assert words in refusal(client, api_name="/make_style", **arguments)


def test_predict_has_the_shape_of_the_old_web_api(client, url, example_photos):
    data = base64.b64encode(example_photos[0].read_bytes()).decode()
    answer = client.predict(data, 5, api_name="/predict")
    assert set(answer) == {"prediction"}
    assert "'beam_width': 5" in answer["prediction"] and "thing of colour" in answer["prediction"]
    assert "'writer': 'neural-storyteller'" in answer["prediction"]
    event = httpx.post(f"{url}gradio_api/call/v2/predict", json={"data": data, "bw": 1}).json()["event_id"]
    assert "prediction" in httpx.get(f"{url}gradio_api/call/v2/predict/{event}").text
    assert "base64" in refusal(client, "%%%", 1, api_name="/predict")
    assert "bw" in refusal(client, data, 0, api_name="/predict")


@pytest.mark.parametrize("photo", [{}, {"url": ""}, {"url": "photo.jpg"}, {"path": "photo.jpg"}])
def test_what_is_no_photo_gives_a_sentence(url, photo):
    event = httpx.post(f"{url}gradio_api/call/caption", json={"data": [photo, "generate"]}).json()["event_id"]
    answer = httpx.get(f"{url}gradio_api/call/caption/{event}").text
    assert "event: error" in answer and "photo" in answer


def test_files_of_the_server_are_no_styles_or_books(url, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text(BOOK)
    payload = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{url}gradio_api/call/make_style", json={"data": [payload, None, "x"]}).json()["event_id"]
    answer = httpx.get(f"{url}gradio_api/call/make_style/{event}").text
    assert "event: error" in answer and "passages" not in answer


def test_base64_photo(client, example_photos):
    """What a web service sends that has no file to upload."""
    data = base64.b64encode(example_photos[0].read_bytes()).decode()
    by_file = client.predict(handle_file(example_photos[0]), api_name="/caption")
    assert client.predict({"url": f"data:image/jpeg;base64,{data}"}, api_name="/caption") == by_file
    assert "base64" in refusal(client, {"url": "data:image/jpeg;base64,%%%"}, api_name="/caption")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_unusual_photos(client, mode, tmp_path):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    Image.effect_noise((64, 48), 40).convert("RGB").convert(mode).save(path)
    assert client.predict(handle_file(path), api_name="/caption")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.jpg", b"no photo at all", "notes.jpg is not a photo"),
        ("empty.png", b"", "empty"),
        ("cut.jpg", None, "cut off or damaged"),
        ("dot.png", (1, 1), "too small"),
        ("wall.png", (20_000, 20_000), "too large"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>", "is not a photo"),
        ("<img src=x>.jpg", b"no photo", "is not a photo"),
    ],
)
def test_bad_photos_give_a_sentence(client, tmp_path, example_photos, name, content, words):
    path = tmp_path / name
    if content is None:
        content = example_photos[0].read_bytes()[:5000]
    if isinstance(content, tuple):
        Image.new("1", content).save(path)
    else:
        path.write_bytes(content)
    for endpoint in ("/caption", "/tell"):
        message = refusal(client, handle_file(path), api_name=endpoint)
        assert words in message
        assert "<" not in message
        assert "Traceback" not in message


def test_no_photo_and_unknown_style_and_strange_seed(client, example_photos):
    assert "There is no photo yet" in refusal(client, None)
    message = refusal(client, handle_file(example_photos[0]), "western")
    assert "western" in message
    assert all(style in message for style in STYLES)
    assert "whole number" in refusal(client, handle_file(example_photos[0]), "romance", "seven")


def test_files_of_the_server_stay_private(url, tmp_path):
    """A request may name any path; only what was uploaded to the page is opened."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    for payload in (
        {"path": str(secret)},
        {"path": str(secret), "meta": {"_type": "gradio.FileData"}},
        {"path": str(secret), "url": "data:image/png;base64,AAAA"},
    ):
        event = httpx.post(f"{url}gradio_api/call/caption", json={"data": [payload]}).json()["event_id"]
        answer = httpx.get(f"{url}gradio_api/call/caption/{event}").text
        assert "event: error" in answer
        assert "colour" not in answer


def test_styles_have_labels_for_people():
    assert app.STYLES == STYLES
    assert app.LABELS["science_fiction"] == "Science fiction"


def test_pipeline_is_loaded_once(monkeypatch):
    """However many visitors come at the same moment."""
    calls = []

    def load():
        calls.append(1)
        threading.Event().wait(0.05)
        return object()

    monkeypatch.setattr(app, "_load_pipeline", app.functools.cache(load))
    results = []
    threads = [threading.Thread(target=lambda: results.append(app.get_pipeline())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(set(map(id, results))) == 1


def test_building_the_page_loads_nothing():
    def get():
        raise AssertionError("the pipeline was asked for before anybody needed it")

    assert isinstance(app.Page(get).blocks, gr.Blocks)


@pytest.mark.parametrize(("wanted", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_a_story_takes_one_core_unless_told_otherwise(wanted, threads):
    """Visits run in many threads, and torch's helpers of several threads hold each other up."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | wanted
    said = subprocess.run(
        [sys.executable, "-c", "import app, torch; print(torch.get_num_threads())"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(said.stdout) == min(threads, os.cpu_count())


def test_examples_ship_with_their_attribution(example_photos):
    assert len(app.EXAMPLES) == len(example_photos) == 12
    attribution = (example_photos[0].parent / "ATTRIBUTION.md").read_text()
    for path in app.EXAMPLES:
        assert f"| {path.name} |" in attribution
        assert load_image(path).mode == "RGB"


# ---------------------------------------------------------------------------------------------------------------------
# With the real pipeline


def test_untrained_pipeline_behind_the_page(example_photos, tmp_path):
    """The interface the page is written against is the pipeline's own."""
    pipeline = StoryPipeline.from_pretrained(save_tiny_pipeline(tmp_path))
    with served(app.Page(lambda: pipeline).blocks) as url:
        client = Client(url, verbose=False)
        photo = handle_file(example_photos[0])
        result = client.predict(photo, "romance:0.7,horror:0.3", 5, length="Short", api_name="/tell")
        captions = pipeline.caption(example_photos[0])[0]
        assert result["captions"] == [describe(caption) for caption in captions]
        told = pipeline.tell(captions, style="romance:0.7,horror:0.3", seed=5)
        assert (result["story"], result["title"]) == (told.story, told.title)
        assert "romance" in refusal(client, photo, "western")
        assert "seed" in refusal(client, photo, "romance", -1)


def test_untrained_memory_behind_the_page(example_photos):
    pipeline = tiny_pipeline()
    pipeline.set_embedding(tiny_embedding(pipeline.captioner))
    pipeline.use_sentences(["A dog runs.", "Two cats sleep.", "A red house."])
    with served(app.Page(lambda: pipeline).blocks) as url:
        client = Client(url, verbose=False)
        photo = handle_file(example_photos[0])
        near = pipeline.nearest_sentences(str(example_photos[0]), k=5)[0]
        remembered = client.predict(photo, "retrieve", api_name="/caption")
        assert [caption["text"] for caption in remembered] == [text for text, _, _ in near]
        told = client.predict(photo, "romance", 5, length="Short", captions="both", api_name="/tell")
        assert told["captions"][-len(near) :] == remembered and len(told["captions"]) > len(near)
        assert told["story"] == pipeline.start_story(example_photos[0], "romance", 5, captions="both").text


def test_embedded_pipeline_behind_the_page(shipped_storyteller, example_photos, tmp_path, monkeypatch):
    """The same page with the weights that ship: photos differ, seeds repeat, and it works from another folder."""
    monkeypatch.chdir(tmp_path)
    assert tuple(app.get_pipeline().styles) == app.STYLES
    with served(app.Page().blocks) as url:
        client = Client(url, verbose=False)
        dog, ski = (handle_file(Path(path)) for path in example_photos if path.stem in ("dog", "skier"))
        first = client.predict(dog, "romance", 1, api_name="/tell")
        assert client.predict(dog, "romance", 1, api_name="/tell") == first
        other = client.predict(ski, "romance", 1, api_name="/tell")
        assert other["captions"] != first["captions"]
        assert other["story"] != first["story"]
        assert len(first["story"].split()) > 10 and first["title"]
        json.dumps(first)
        captions = app.get_pipeline().caption([load_image(dog["path"])])[0]
        for caption in captions:
            assert len(caption.words) == len(caption.attention)
            assert np.allclose(caption.attention.sum(axis=(1, 2)), 1, atol=1e-2)
