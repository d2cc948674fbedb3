"""What a run reports: its log, trackers and the picture of its curves."""

import importlib.util
import json

import pytest
from PIL import Image

from modeling import RecipeError
from modeling.errors import DataError
from tests.test_loop import run
from training import plot_curves
from training.loop import LoopOptions
from training.plot_curves import draw_runs, panel_names, read_run
from training.reports import check_trackers

OFTEN = {"evaluate_every": 2, "save_every": 4, "schedule": "constant"}


def need_matplotlib():
    pytest.importorskip("matplotlib", reason="curves are drawn with matplotlib (training/requirements.txt)")


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(tmp_path):
    run(tmp_path, "whole", max_steps=10, **OFTEN)
    run(tmp_path, "cut", max_steps=4, **OFTEN)
    log = tmp_path / "cut" / "log.jsonl"
    with log.open("a") as file:  # reports after the checkpoint, and half a line: killed in step 6
        file.write('{"step": 5, "loss": 99.0}\n{"step": 6, "lo')
    run(tmp_path, "cut", resume=True, max_steps=10, **OFTEN)
    timeless = [
        [{k: v for k, v in line.items() if k not in ("s_per_step", "evaluation_s")} for line in lines(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def test_curves_of_a_run(tmp_path):
    run(tmp_path, max_steps=6, **OFTEN)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5, "learning_rate": 1.0}\n{"step": 7, "loss": NaN}\n{"st')
    curves = read_run(tmp_path / "run")
    assert (
        curves.name == "run"
        and curves.best_step == json.loads((tmp_path / "run/progress.json").read_text())["best_step"]
    )
    assert sorted(curves.train["loss"]) == [1, 2, 3, 4, 5, 6] and curves.train["loss"][6] == 0.5
    assert sorted(curves.evaluation["loss"]) == [2, 4, 6]
    assert panel_names([curves]) == ["loss", "learning_rate", "grad_norm"]


def test_the_loop_draws_its_curves(tmp_path):
    need_matplotlib()
    run(tmp_path, max_steps=4, **OFTEN)
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


def test_a_run_without_matplotlib_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("training.reports.can_draw", lambda: False)
    run(tmp_path, max_steps=4, **OFTEN)
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_picture_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("training.reports.can_draw", lambda: True)
    monkeypatch.setattr("training.reports.draw_runs", fail)
    _, result = run(tmp_path, max_steps=4, **OFTEN)
    assert result.steps == 4
    assert capsys.readouterr().err.count("no fonts") == 1


def test_several_runs_in_one_picture(tmp_path, capsys):
    need_matplotlib()
    for name, rate in (("fast", 4), ("slow", 6)):
        run(tmp_path, name, max_steps=rate, **OFTEN)
    output = tmp_path / "pictures" / "both.svg"
    folders = [str(tmp_path / name) for name in ("fast", "slow")]
    assert plot_curves.main([*folders, "--output", str(output)]) == 0
    drawing = output.read_text()
    assert "<svg" in drawing
    one = draw_runs([read_run(folders[0])], tmp_path / "one.svg", ["loss"]).read_text()
    assert 0 < one.count("<path") < drawing.count("<path")
    assert all(text in drawing for text in ("fast", "slow")) and "fast" not in one
    assert [path.name for path in output.parent.iterdir()] == ["both.svg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no log"),
        (["empty"], "holds no step yet"),
        (["run", "--only", "bleu"], "No run has logged 'bleu'; there are loss"),
        (["run", "--output", "curves.doc"], "end its name in one of .png"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    if "run" in arguments:
        need_matplotlib()
    monkeypatch.chdir(tmp_path)
    run(tmp_path, max_steps=2, **OFTEN)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text("")
    capsys.readouterr()
    assert plot_curves.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and message in error and error.count("\n") == 1


def test_drawing_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_curves, "can_draw", lambda: False)
    with pytest.raises(DataError, match="pip install"):
        draw_runs([], tmp_path / "curves.png")


def test_trackers_are_checked_before_anything_starts(monkeypatch):
    with pytest.raises(RecipeError, match="no tracker 'tensorbored'; choose from aim"):
        LoopOptions("out", trackers=["tensorbored"])
    with pytest.raises(RecipeError, match="list of names"):
        LoopOptions("out", trackers="tensorboard")
    monkeypatch.setattr("training.reports.get_available_trackers", lambda: [])
    with pytest.raises(RecipeError, match="'tensorboard' is not installed: pip install tensorboard"):
        check_trackers(["tensorboard"])
    check_trackers([])


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_every_report_once_also_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, max_steps=4, trackers=["tensorboard"], **OFTEN)
    run(tmp_path, resume=True, max_steps=8, trackers=["tensorboard"], **OFTEN)
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "pictale"))
    events.Reload()
    logged = {(line["step"], line["loss"]) for line in lines(tmp_path / "run") if "learning_rate" in line}
    seen = events.Scalars("train/loss")
    assert [event.step for event in seen] == list(range(1, 9))
    assert {event.step: event.value for event in seen} == pytest.approx(dict(logged))
    assert [event.step for event in events.Scalars("evaluation/loss")] == [2, 4, 6, 8]
