"""Many visitors: the queue, who leaves early, what is refused, what is thrown away, and the script that measures it."""

import io
import os
import sys
import threading
import time

import httpx
import pytest
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from modeling.page_events import MAX_UPLOAD_BYTES
from tests import load
from tests.fakes import FakePipeline
from tests.page_steps import tell, visit
from tests.serving import served
from tests.tiny import BOOK, tiny_pipeline


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline(words=20_000, pause=0.01)  # never at its end before a test is, however busy the machine


@pytest.fixture
def page(pipeline):
    return app.Page(lambda: pipeline).blocks


def joined(client: httpx.Client, photo: str, endpoint: str = "tell") -> httpx.Response:
    """Somebody wants something; nobody listens yet."""
    file = {"path": photo, "meta": {"_type": "gradio.FileData"}}
    data = (
        [file, "horror", 1, 1.0, "Short", None, "generate", "storyteller"] if endpoint == "tell" else [file, "generate"]
    )
    return client.post(f"gradio_api/call/{endpoint}", json={"data": data})


def uploaded(client: httpx.Client, content: bytes, name: str = "photo.jpg") -> httpx.Response:
    return client.post("gradio_api/upload", files={"files": (name, content, "image/jpeg")})


def until(condition) -> None:
    """Wait for something that must come."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_full_queue_is_said_and_captions_do_not_wait_for_stories(page, pipeline, example_photos, monkeypatch):
    monkeypatch.setenv("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "1")
    monkeypatch.setattr(app, "MAX_WAITING", 2)
    with served(page) as url, httpx.Client(base_url=url, timeout=60) as client:
        photo = uploaded(client, example_photos[0].read_bytes()).json()[0]
        first = joined(client, photo)
        until(lambda: pipeline.written)
        others = [joined(client, photo) for _ in range(3)]
        assert [answer.status_code for answer in (first, *others)] == [200, 200, 200, 503]
        _, failures = load.run(load.crowd(url, 1, "Short"))
        assert failures == ["visitor 0: the queue is full"]
        for answer in others[:2]:  # they leave
            with client.stream("GET", f"gradio_api/call/tell/{answer.json()['event_id']}"):
                pass
        until(lambda: len(page._queue) == 0)
        assert pipeline.written < pipeline.words  # the first story is not over
        captions = joined(client, photo, "caption").json()["event_id"]
        assert "thing of colour" in client.get(f"gradio_api/call/caption/{captions}").text
        assert pipeline.written < pipeline.words


@pytest.mark.browser
def test_a_full_queue_is_said_on_the_page(browser, page, pipeline, example_photos, monkeypatch):
    monkeypatch.setenv("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "1")
    monkeypatch.setattr(app, "MAX_WAITING", 1)
    pipeline.words = 40
    with served(page) as url, httpx.Client(base_url=url, timeout=60) as client, visit(browser, url) as tab:
        photo = uploaded(client, example_photos[0].read_bytes()).json()[0]
        first = joined(client, photo)
        until(lambda: pipeline.written and not len(page._queue))
        waiting = joined(client, photo)
        assert (first.status_code, waiting.status_code) == (200, 200)
        tab.get_by_role("button", name="Tell me a story").click()
        tab.get_by_text("currently busy. Please try again").first.wait_for()
        until(lambda: not len(page._queue) and not any(page._queue.active_jobs))
        assert "word39" in tell(tab, example_photos[0])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_who_leaves_stops_the_writer(page, pipeline, example_photos, how):
    with served(page) as url:
        if how == "cancel":
            job = Client(url, verbose=False).submit(handle_file(example_photos[0]), "horror", api_name="/tell")
            until(lambda: len(job.outputs()) > 3)
            job.cancel()
        else:
            with httpx.Client(base_url=url, timeout=60) as client:
                event = joined(client, uploaded(client, example_photos[0].read_bytes()).json()[0]).json()["event_id"]
                with client.stream("GET", f"gradio_api/call/tell/{event}") as stream:
                    lines = stream.iter_lines()
                    until(lambda: pipeline.written > 3 and next(lines))
        until(lambda: not any(page._queue.active_jobs))
        written = pipeline.written
        assert 3 < written < pipeline.words
        time.sleep(0.2)  # a step takes a hundredth of a second
        assert pipeline.written == written


def test_uploads_have_an_end(page, example_photos):
    with served(page) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert uploaded(client, bytes(MAX_UPLOAD_BYTES + 1)).status_code == 413
        assert uploaded(client, example_photos[0].read_bytes()).status_code == 200
        data = f"data:image/jpeg;base64,{'A' * (MAX_UPLOAD_BYTES * 4 // 3 + 4)}"
        event = client.post("gradio_api/call/caption", json={"data": [{"url": data}, "generate"]}).json()["event_id"]
        assert "larger than 50 MB" in client.get(f"gradio_api/call/caption/{event}").text


def test_text_has_an_end(page, pipeline, monkeypatch, example_photos):
    pipeline.words, pipeline.pause = 40, 0.0
    monkeypatch.setattr("modeling.page_events.MAX_BOOK_CHARACTERS", 1000)
    with served(page) as url:
        client = Client(url, verbose=False)
        with pytest.raises(AppError, match="at most 1,000"):
            client.predict(text=BOOK, name="mine", api_name="/make_style")
        photo = handle_file(example_photos[0])
        story = client.predict(photo, "horror", length="Short", api_name="/tell")["record"]
        with pytest.raises(AppError, match="at most 20,000"):
            client.predict(story, sentence="word " * 5000, api_name="/continue_story")


def test_files_of_visitors_are_thrown_away(page, example_photos):
    """Uploads and what was made for download; gradio looks for old ones every hour."""
    assert page.delete_cache == (3600, 86400)
    with served(page) as url, httpx.Client(base_url=url, timeout=60) as client:
        photo = uploaded(client, example_photos[0].read_bytes(), "to be forgotten.jpg").json()[0]
        style = Client(url, verbose=False, download_files=False).predict(text=BOOK, name="mine", api_name="/make_style")
        made = style[1]["path"]
        assert os.path.isfile(photo) and os.path.isfile(made)
        delete_files_created_by_app(page, 3600)
        assert os.path.isfile(photo) and os.path.isfile(made)
        delete_files_created_by_app(page, 0)
        assert not os.path.exists(photo) and not os.path.exists(made)


def test_few_sessions_are_remembered(page, monkeypatch):
    monkeypatch.setattr(app, "MAX_SESSIONS", 5)
    with served(page) as url:
        client = httpx.Client(base_url=url, timeout=60)
        for _ in range(8):
            event = client.post("gradio_api/call/caption", json={"data": [None, "generate"]}).json()["event_id"]
            assert "no photo yet" in client.get(f"gradio_api/call/caption/{event}").text
        assert len(page.state_holder.session_data) <= 5


def test_stories_at_the_same_time_are_those_told_one_by_one():
    """Nothing that is being written belongs to the pipeline: threads do not disturb each other."""
    pipe = tiny_pipeline()
    photos = [Image.effect_noise((64, 64), 10 * i + 10).convert("RGB") for i in range(4)]

    def tell(i: int) -> str:
        return pipe(photos[i % 4], style=("romance", "horror")[i % 2], seed=i).story

    expected, told = [tell(i) for i in range(8)], {}
    threads = [threading.Thread(target=lambda i=i: told.update({i: tell(i)})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [told[i] for i in range(8)] == expected


def test_every_visitor_of_the_load_script_has_a_photo_of_his_own():
    photos = [load.photo_of(visitor) for visitor in range(30)]
    assert len(set(photos)) == 30
    assert Image.open(io.BytesIO(photos[29])).width > 100


def test_load_is_measured():
    pipeline = FakePipeline(words=10)
    with served(app.Page(lambda: pipeline).blocks) as url:
        report = load.measure(url, 3, "Medium", pid=os.getpid(), rest=0)
    assert report["failures"] == [] and report["visitors"] == 3
    for times in report["seconds"].values():
        assert 0 < times["median"] <= times["worst"]
    assert report["seconds"]["total"]["worst"] >= report["seconds"]["story"]["median"]
    assert report["memory"]["peak"] > 50
    assert len(pipeline.calls) == 4  # one visitor goes first


def test_load_tells_of_failures(monkeypatch, capsys):
    class Broken(FakePipeline):
        def see(self, images, options):
            raise RuntimeError("this model is broken")

    with served(app.Page(Broken).blocks) as url:
        monkeypatch.setattr(sys, "argv", ["load", url, "--visitors", "2"])
        with pytest.raises(SystemExit) as end:
            load.main()
    assert end.value.code == 1
    assert "visitor 0: /caption" in capsys.readouterr().out
