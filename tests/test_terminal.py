"""`python -m modeling`: what goes to which stream, exit codes, no traceback."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from modeling.__main__ import main
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
        assert set(record["captions"][0]) == {"text", "score"}


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


def test_the_real_process_has_no_traceback(model, tmp_path):
    command = [sys.executable, "-m", "modeling", str(tmp_path / "nowhere.jpg"), "--model", model, "--style", "romance"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    assert "nowhere.jpg" in run.stderr and "Traceback" not in run.stderr
