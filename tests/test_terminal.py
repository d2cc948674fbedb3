"""`python -m modeling`: what goes to which stream, exit codes, no traceback."""

import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image

from modeling import Source, Story, Style
from modeling.__main__ import main
from modeling.style_pages import Page, StylePages
from tests.conftest import REPOSITORY
from tests.tiny import save_tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_pipeline(tmp_path_factory.mktemp("models")))


@pytest.fixture
def photos(tmp_path):
    paths = []
    for i, colour in enumerate(("red", "blue")):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (40, 40), colour).save(paths[-1])
    return paths


def test_json_is_one_object_a_line(model, photos, capsys):
    assert main([*photos, "--model", model, "--style", "horror", "--seed", "3", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["photo"] for r in records] == photos
    for record in records:
        assert list(record) == ["photo", "captions", "style", "seed", "title", "story"]
        assert record["style"] == "horror" and record["seed"] == 3 and record["story"] and record["title"]
        assert set(record["captions"][0]) == {"text", "score", "remembered"}


def test_people_read_captions_and_story_on_stdout_and_progress_on_stderr(model, photos, capsys):
    assert main([photos[0], "--model", model, "--style", "romance", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    title = run(capsys, photos[0], "--model", model, "--style", "romance", "--seed", "1")["title"]
    assert "(romance, seed 1)" in captured.out and f"\n{title}\n\n" in captured.out
    assert "[1/1]" in captured.err and "[1/1]" not in captured.out


def test_one_broken_photo_does_not_stop_the_others(model, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    assert main([str(broken), photos[0], "--model", model, "--style", "romance", "--json"]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "broken.jpg" in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("extra", [["--style", "western"], ["--seed", "-4"], ["--model", "nowhere"]])
def test_bad_settings_exit_with_two(model, photos, extra, capsys):
    arguments = [photos[0], "--model", model, "--style", "romance", *extra]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("pictale: ") and not captured.out


def run(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_one_story_is_kept_and_gone_on_with(model, photos, tmp_path, capsys):
    settings = ["--model", model, "--seed", "5"]
    kept = str(tmp_path / "day.json")
    one = run(capsys, photos[0], *settings, "--style", "horror")
    both = run(capsys, *photos, *settings, "--style", "horror", "--one-story", "--save", kept)
    assert both["story"].startswith(one["story"]) and both["photo"] == photos[1]
    story = Story.load(kept)
    assert story.text == both["story"] and len(story.photos) == 2
    longer = run(capsys, *settings, "--continue", kept, "--sentence", "Then  he left.", "--save", kept)
    assert longer["style"] == "horror" and longer["story"].startswith(both["story"] + "\n\nThen  he left.\n\n")
    assert Story.load(kept).undo() == story
    assert run(capsys, *settings, "--continue", kept)["story"].startswith(longer["story"])


def test_how_it_is_written(model, photos, capsys):
    settings = [photos[0], "--model", model, "--style", "romance", "--seed", "5"]
    plain = run(capsys, *settings)
    assert "\n" in run(capsys, *settings, "--lyrics")["story"] and "\n" not in plain["story"]
    long = run(capsys, *settings, "--length", "long", "--candidates", "1")["story"]
    assert len(long.split()) > 2 * len(plain["story"].split())
    recipe = [*settings, "--writer", "neural-storyteller", "--beam-width", "2", "--num-captions", "5"]
    old = run(capsys, *recipe)
    assert len(old["captions"]) == 5 and old["title"] == ""


def test_the_book_whose_manner_it_has_is_named(model, photos, tmp_path, capsys, monkeypatch):
    source = Source("Kim", "Rudyard Kipling", 1901)
    monkeypatch.setattr(StylePages, "__call__", lambda self, task: Page("He ran. He stood.", source))
    settings = [photos[0], "--model", model, "--style", "romance", "--seed", "5"]
    follows = [{"title": "Kim", "author": "Rudyard Kipling", "year": 1901}]
    assert run(capsys, *settings)["follows"] == follows
    assert run(capsys, *settings, "--one-story")["follows"] == follows
    assert main(settings) == 0
    assert "\n— in the manner of Kim, Rudyard Kipling (1901)\n" in capsys.readouterr().out


def test_a_style_file_of_ones_own(model, photos, tmp_path, capsys):
    style = Style.load(f"{model}/styles/horror.safetensors")
    dataclasses.replace(style, name="mine").save(tmp_path / "mine.safetensors")
    settings = [photos[0], "--model", model, "--seed", "5"]
    file = ["--style-file", str(tmp_path / "mine.safetensors")]
    mine = run(capsys, *settings, *file)
    assert mine["style"] == "mine" and mine["story"]
    assert mine == run(capsys, *settings, *file, "--style", "mine")
    old = ["--writer", "neural-storyteller", "--beam-width", "2"]  # which sees the vector, and not the name
    assert run(capsys, *settings, *file, *old)["story"] == run(capsys, *settings, "--style", "horror", *old)["story"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a photo"),
        (["--one-story"], "name a photo"),
        (["a.png", "b.png", "--save", "s.json"], "--one-story"),
        (["--continue", "nowhere.json"], "nowhere.json"),
        (["--sentence", " "], "empty"),
        (["--sentence", "So it was.", "--length", "endless"], "length must be short or medium or long"),
    ],
)
def test_what_makes_no_story_is_one_sentence(model, arguments, says, capsys):
    assert main([*arguments, "--model", model]) == 2
    captured = capsys.readouterr()
    assert says in captured.err.splitlines()[-1] and not captured.out and "Traceback" not in captured.err


def test_the_real_process_has_no_traceback(model, tmp_path):
    command = [sys.executable, "-m", "modeling", str(tmp_path / "nowhere.jpg"), "--model", model, "--style", "romance"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    assert "nowhere.jpg" in run.stderr and "Traceback" not in run.stderr
