"""The writer behind an OpenAI-compatible endpoint: prompts, streaming, stopping, every failure, and the secret key."""

import json
import logging
import pickle
import threading
import traceback
from contextlib import closing
from email.utils import formatdate

import pytest

from modeling import PictaleError, Source, Story, StoryError
from modeling.__main__ import main
from modeling.endpoint_chat import Endpoint
from modeling.story import Step
from modeling.story_types import Caption
from modeling.style_pages import Page
from modeling.writer_endpoint import EndpointWriter
from tests.support.chat_server import KEY, delta, running_chat
from tests.tiny import save_tiny_pipeline, tiny_pipeline

CAPTIONS = ["A dog runs on the beach.", "A red house."]
WISHES = {"style": "romance", "seed": 7, "writer": "endpoint"}
PAGE = Page("He let her go. She went.", Source("Emma", "Jane Austen", 1815))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def chat(pipe, monkeypatch):
    with running_chat() as chat:
        monkeypatch.setenv("OPENAI_BASE_URL", chat.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_MODEL", "a/model")
        pipe.writers["endpoint"] = EndpointWriter(pipe.pages, quiet=20)
        yield chat


def refusal(pipe, **wishes) -> str:
    with pytest.raises(StoryError) as caught:
        pipe.tell(CAPTIONS, **(WISHES | wishes))
    message = str(caught.value)
    assert message.startswith("The language model's endpoint ") and message.endswith(".") and "\n" not in message
    assert caught.value.__context__ is None and caught.value.__cause__ is None  # httpx' errors hold the request
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return message


def test_a_story_is_asked_for_and_comes(pipe, chat):
    result = pipe.tell(CAPTIONS, **WISHES)
    assert result.story == chat.story and result.title == "" and result.follows == ()
    (request,) = chat.requests
    assert chat.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["stream"], request["seed"]) == ("a/model", True, 7)
    system, ask = request["messages"]
    assert (system["role"], ask["role"]) == ("system", "user")
    assert "longing" in system["content"] and "without title" in system["content"]
    shows = "The photo shows: A dog runs on the beach. A red house."
    assert ask["content"] == f"Write a passage of a romance, 28 to 48 words.\n\n{shows}"
    assert (request["temperature"], request["top_p"]) == (0.6, 0.95)


def test_a_page_shows_the_manner_and_its_book_is_named(pipe, chat):
    pipe.writers["endpoint"] = EndpointWriter(lambda task: PAGE, quiet=20)
    result = pipe.tell(CAPTIONS, **WISHES)
    assert result.follows == (PAGE.source,) and result.sources == ()
    ask = chat.requests[0]["messages"][-1]["content"]
    assert "Take the manner, not the content, of this page:\nHe let her go. She went.\n\nThe photo shows: " in ask
    for grown in pipe.stream_continuation(Story(), sentence="So.", **WISHES):
        assert grown.passages[-1].origin == "user" or grown.passages[-1].follows == (PAGE.source,)


def test_what_a_photo_only_brings_to_mind_is_said_to_be_that(pipe, chat, example_photos):
    captions = [Caption("A dog runs on the beach.", -0.5), Caption("A shark swims.", 0.6, remembered=True)]
    pipe.tell(captions, **WISHES)
    pipe.start_story(example_photos[0], captions=captions, **WISHES)
    for request in chat.requests:
        said = "The photo shows: A dog runs on the beach. It may also show: A shark swims."
        assert request["messages"][-1]["content"].endswith(said)
    pipe.tell(captions[1:], **WISHES)  # where nothing else is known, it is what there is, and said once
    assert chat.requests[-1]["messages"][-1]["content"].endswith("\n\nThe photo shows: A shark swims.")


def test_words_arrive_before_the_end(pipe, chat):
    chat.turns = threading.Semaphore(7)
    seen = []
    for text in pipe.stream(CAPTIONS, **WISHES):
        seen.append((text, chat.sent))
        chat.turns.release()
    assert seen[-1][0] == chat.story
    assert seen[0][1] < 8 and len({text for text, _ in seen}) > 15
    assert all(later[0].startswith(earlier[0]) for earlier, later in zip(seen, seen[1:], strict=False))


def test_continuations_know_what_was_told(pipe, chat):
    chat.story = "Dog number # ran along the beach. It saw a boat."
    story = pipe.continue_story(Story(), sentence="The <b>lights</b> went out.", **WISHES)
    assert [p.origin for p in story.passages] == ["user", "sentence"]
    assert story.passages[0].text == "The <b>lights</b> went out." and story.passages[1].writer == "endpoint"
    story = pipe.continue_story(story, seed=3)
    assert story.passages[-1].writer == "endpoint"  # kept
    parts = [chat.story.replace("#", number) for number in "12"]
    assert [p.text for p in story.passages[1:]] == parts
    first, second = (request["messages"] for request in chat.requests)
    assert first[-2]["content"] == "The <b>lights</b> went out."
    assert second[-2] == {"role": "assistant", "content": f"The <b>lights</b> went out. {parts[0]}"}
    assert second[-1]["content"] == "Go on with the story from there. Write 28 to 48 words."
    long = Story().add(Step(passages=story.passages[:1])).edit(0, "It rained and rained. " * 900)
    pipe.continue_story(long, **WISHES)
    told = chat.requests[-1]["messages"][-2]["content"]
    assert told == " ".join(["It rained and rained."] * 300)  # 1200 words, whole sentences


def test_a_new_photo_is_the_next_scene(pipe, chat, example_photos):
    chat.story = "Dog number # ran along the beach."
    story = pipe.start_story(example_photos[0], captions=["A gull."], **WISHES)
    pipe.continue_story(story, example_photos[1], captions=["A horse.", "A horse."], **WISHES)
    ask, told, scene = chat.requests[-1]["messages"][-3:]
    assert told["content"] == "Dog number 1 ran along the beach." and "shows" not in ask["content"]
    assert scene["content"] == ("Go on with the story from there. Now the photo shows: A horse. Write 28 to 48 words.")


def test_what_models_add_is_left_out_and_what_looks_like_html_is_letters(pipe, chat):
    chat.story = "Sure! Here is the story:\n\n**The Dog**\n\nA <b>dog</b> *ran*.\n\nI hope you enjoyed it!"
    assert pipe.tell(CAPTIONS, **WISHES).story == "A <b>dog</b> ran."


def test_it_is_stopped_when_the_passage_is_long_enough(pipe, chat):
    chat.story, chat.pause = "There was an old dog by the sea. " * 5_000, 0.001  # takes a minute
    story = pipe.tell(CAPTIONS, **WISHES).story
    assert len(story.split()) == 48 and story.endswith("sea.")
    assert chat.hung_up.wait(60) and chat.sent < 40_000


def test_stop_closes_the_connection(pipe, chat):
    chat.story, chat.pause = "word " * 100_000, 0.002  # takes minutes
    before = threading.active_count()
    with closing(pipe.stream(CAPTIONS, **(WISHES | {"length": "long"}))) as growing:
        while len(next(growing).split()) < 3:
            pass
    assert chat.hung_up.wait(60) and chat.sent < 100_000
    assert threading.active_count() <= before + 1  # of the server


# -- failures ---------------------------------------------------------------------------------------------------------
def fail(chat, status, headers=None, message="", times=1, **more):
    chat.statuses += [(status, headers or {}, {"error": {"message": message, **more}})] * times


def test_a_wrong_key(pipe, chat):
    fail(chat, 401, message=f"Incorrect API key provided: {KEY}.")
    assert "did not accept its key (401): OPENAI_API_KEY" in refusal(pipe)


def test_no_such_model_or_place(pipe, chat, monkeypatch):
    fail(chat, 404, message="The model does not exist.")
    assert "(404): check OPENAI_MODEL and OPENAI_BASE_URL" in refusal(pipe)
    monkeypatch.setenv("OPENAI_BASE_URL", chat.url.removesuffix("/v1"))
    assert "often it ends in /v1" in refusal(pipe)
    fail(chat, 307, {"Location": "http://127.0.0.1:1/"})
    monkeypatch.setenv("OPENAI_BASE_URL", chat.url)
    assert "sends elsewhere (307)" in refusal(pipe)


def test_a_short_wait_is_waited_and_a_long_one_told(pipe, chat):
    fail(chat, 429, {"Retry-After": "0.01"}, times=2)
    assert pipe.tell(CAPTIONS, **WISHES).story == chat.story and len(chat.requests) == 3
    fail(chat, 429, {"Retry-After": "0"}, times=5)
    assert "has too much to do (429): try again in 1 second," in refusal(pipe) and len(chat.requests) == 6
    chat.statuses.clear()
    for value, words in (("90", "in 2 minutes"), ("7200", "in 2 hours"), ("11", "in 11 seconds"), ("soon", "later")):
        fail(chat, 429, {"Retry-After": value})
        assert f"try again {words}," in refusal(pipe)
    fail(chat, 429, {"Retry-After": formatdate(4e9, usegmt=True)})
    assert "hours," in refusal(pipe)
    fail(chat, 429, message="You exceeded your current quota.", type="insufficient_quota")
    assert "has no quota left (429)" in refusal(pipe)
    assert len(chat.requests) == 12  # none of these was asked twice


def test_a_fault_of_the_server(pipe, chat):
    fail(chat, 503, {"Retry-After": "0.01"})
    assert pipe.tell(CAPTIONS, **WISHES).story == chat.story
    fail(chat, 500, {"Retry-After": "0"}, times=5)
    assert "has a fault of its own (500)" in refusal(pipe)
    chat.statuses.clear()
    fail(chat, 502, {"Retry-After": "600"})
    assert "try again in 10 minutes," in refusal(pipe)


def test_parameters_that_are_refused_are_left_out_and_not_sent_again(pipe, chat):
    chat.unknown = ("temperature", "max_tokens")
    assert pipe.tell(CAPTIONS, **WISHES).story == chat.story
    pipe.tell(CAPTIONS, **WISHES)
    *_, first, second = chat.requests
    assert len(chat.requests) == 4  # two were refused, then each was answered at once
    for request in (first, second):
        assert "max_completion_tokens" in request and "seed" in request
        assert not {"temperature", "max_tokens"} & set(request)


def test_another_refusal_is_told_without_the_key(pipe, chat):
    fail(chat, 400, message=f"Bad header\n Authorization: Bearer {KEY} " + "x" * 500)
    message = refusal(pipe)
    assert "refused the request (400: Bad header Authorization: Bearer … xxx" in message and len(message) < 300
    chat.statuses = [(422, {}, b"<html>nothing</html>")]
    assert "refused the request (422)." in refusal(pipe)


def test_silence(pipe, chat):
    pipe.writers["endpoint"]._quiet = 0.2
    chat.pause = 1.0
    assert "was silent for 0.2 seconds" in refusal(pipe)


def test_nobody_there(pipe, chat, monkeypatch):
    with running_chat() as other:
        gone = other.url
    monkeypatch.setenv("OPENAI_BASE_URL", gone)
    message = refusal(pipe)
    assert "cannot be reached" in message and "127.0.0.1" not in message
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:99999/v1")
    assert "cannot be" in refusal(pipe)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([delta("Once there were three dogs "), None], "broke off in the middle"),
        ([delta("Once there were three dogs ")], "broke off in the middle"),
        ([delta("Once there were three dogs "), "{not json"], "is not OpenAI's protocol"),
        ([delta("Once there were three dogs "), "[1, 2]"], "is not OpenAI's protocol"),
        ([delta("Once there were three dogs "), {"choices": 3}], "is not OpenAI's protocol"),
        ([delta("Once there were three dogs "), {"error": {"message": KEY}}], "reports a fault"),
        ([delta("Once there were three dogs "), delta(finish="content_filter")], "declined to write this"),
        ([delta("Once there were three dogs "), delta(refusal="I cannot help with that.")], "declined to write this"),
    ],
)
def test_what_came_before_a_failure_stays_and_can_be_gone_on_with(pipe, chat, events, says):
    told = pipe.continue_story(Story(), sentence="It was late.", **WISHES)
    chat.events, stories = events, [told]
    with pytest.raises(StoryError, match=says):
        stories.extend(pipe.stream_continuation(told, **WISHES))
    grown = stories[-1]
    assert grown.passages[-1].text == "Once there were three dogs" and len(grown.passages) == 3
    assert Story.from_json(grown.to_json()) == grown
    chat.events = None
    longer = pipe.continue_story(grown, **WISHES)
    assert longer.passages[:3] == grown.passages and longer.passages[3].text == chat.story


def test_a_broken_choice_is_no_answer(pipe, chat):
    chat.events = [{"choices": ["x"]}, {"choices": [{"delta": None}]}, {"choices": []}, "[DONE]"]
    with pytest.raises(StoryError, match="answered with nothing"):
        pipe.tell(CAPTIONS, **WISHES)


def test_empty_answers(pipe, chat):
    chat.story = "Sure!"
    with pytest.raises(StoryError, match="answered with nothing"):
        pipe.tell(CAPTIONS, **WISHES)
    chat.events = [delta("<think>Should I"), delta(finish="length"), "[DONE]"]
    with pytest.raises(StoryError, match="thought too long"):
        pipe.tell(CAPTIONS, **WISHES)


def test_an_endpoint_that_does_not_stream(pipe, chat):
    answer = {"choices": [{"message": {"content": chat.story}, "finish_reason": "stop"}]}
    chat.whole, chat.content_type = json.dumps(answer).encode(), "application/json; charset=utf-8"
    assert pipe.tell(CAPTIONS, **WISHES).story == chat.story
    chat.content_type = "text/html"
    assert "does not speak OpenAI's protocol" in refusal(pipe)
    chat.whole, chat.content_type = b"<html>", "application/json"
    assert "is not OpenAI's protocol" in refusal(pipe)


def test_an_answer_that_never_ends(pipe, chat, monkeypatch):
    monkeypatch.setattr("modeling.endpoint_chat.MOST_BYTES", 2000)
    chat.events = [delta("<think>" + "x" * 500)] * 50
    assert "did not come to an end" in refusal(pipe)


# -- settings and secrets ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"OPENAI_MODEL": ""}, "set OPENAI_MODEL in"),
        ({"OPENAI_BASE_URL": "", "OPENAI_API_KEY": " "}, "set OPENAI_BASE_URL or OPENAI_API_KEY, and OPENAI_MODEL"),
        ({"OPENAI_BASE_URL": "localhost:8000"}, "should look like http://"),
        ({"OPENAI_API_KEY": "sk-ä b"}, "has characters that no key has"),
    ],
)
def test_settings_that_are_missing_or_wrong(pipe, chat, monkeypatch, changes, says):
    assert pipe.has_writer("endpoint")
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PictaleError, match=says) as caught:
        pipe.tell(CAPTIONS, **WISHES)
    assert "ä" not in str(caught.value) and not pipe.has_writer("endpoint") and not chat.requests


def test_an_endpoint_without_a_key_gets_none(pipe, chat, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert pipe.tell(CAPTIONS, **WISHES).story == chat.story
    assert "authorization" not in chat.headers[0]


def test_the_key_is_nowhere(pipe, chat, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    writer = pipe.writers["endpoint"]
    stories = list(pipe.stream_continuation(Story(), sentence="It was late.", **WISHES))
    fail(chat, 400, message=f"Your key {KEY} is of no use.")
    said = [refusal(pipe), writer.about(), repr(Endpoint.from_environment()), repr(vars(writer)), repr(stories[-1])]
    said += [stories[-1].to_json(), stories[-1].to_markdown(), json.dumps(chat.requests), caplog.text]
    said += [repr(pickle.dumps(writer._refused)), *capfd.readouterr()]
    assert "127.0.0.1" in caplog.text  # httpx does log its requests
    assert not [text for text in said if KEY in text]


def test_in_the_terminal(chat, tmp_path, capsys):
    model = str(save_tiny_pipeline(tmp_path / "models"))
    kept = tmp_path / "story.json"
    arguments = ["--sentence", "It was late.", "--model", model, "--writer", "endpoint"]
    assert main([*arguments, "--style", "romance", "--json", "--save", str(kept)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["story"].startswith("It was late.\n\nA dog ran along the beach.")
    assert "model, a language model elsewhere: captions and story are sent there" in captured.err
    chat.events = [delta("Once there were three dogs "), None]
    assert main(["--continue", str(kept), "--model", model, "--json", "--save", str(kept)]) == 2
    captured = capsys.readouterr()
    assert "broke off in the middle" in captured.err.splitlines()[-1]
    assert json.loads(captured.out)["story"].endswith("Once there were three dogs")  # what came is told and kept
    assert Story.load(kept).passages[-1].text == "Once there were three dogs"
    assert KEY not in captured.err + captured.out + kept.read_text()
