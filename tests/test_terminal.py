"""`python -m modeling`: what goes to which stream, exit codes, no traceback."""

import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image

from modeling import Story, Style
from modeling.__main__ import main
from modeling.text import lyric_lines
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
        assert list(record) == ["photo", "captions", "style", "seed", "story"]
        assert record["style"] == "horror" and record["seed"] == 3 and record["story"]
        assert set(record["captions"][0]) == {"text", "score", "remembered"}


def test_people_read_captions_and_story_on_stdout_and_progress_on_stderr(model, photos, capsys):
    assert main([photos[0], "--model", model, "--style", "romance", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert "(romance, seed 1)" in captured.out
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
    assert run(capsys, *settings, "--lyrics")["story"] == lyric_lines(plain["story"])
    assert len(run(capsys, *settings, "--passages", "4")["story"]) > len(plain["story"])
    recipe = [*settings, "--recipe", "neural-storyteller", "--beam-width", "2", "--num-captions", "5"]
    assert len(run(capsys, *recipe)["captions"]) == 5


def test_a_style_file_of_ones_own(model, photos, tmp_path, capsys):
    style = Style.load(f"{model}/styles/horror.safetensors")
    dataclasses.replace(style, name="mine").save(tmp_path / "mine.safetensors")
    settings = [photos[0], "--model", model, "--seed", "5"]
    mine = run(capsys, *settings, "--style-file", str(tmp_path / "mine.safetensors"))
    assert mine["style"] == "mine" and mine["story"] == run(capsys, *settings, "--style", "horror")["story"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a photo"),
        (["--one-story"], "name a photo"),
        (["a.png", "b.png", "--save", "s.json"], "--one-story"),
        (["--continue", "nowhere.json"], "nowhere.json"),
        (["--sentence", " "], "empty"),
        (["--sentence", "So it was.", "--recipe", "cake"], "recipe must be"),
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
