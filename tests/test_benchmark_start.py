"""Start times are measured in processes that do what they say, and reported stage by stage."""

import ast
import json

import pytest

from tests.conftest import REPOSITORY
from training import benchmark_start
from training.benchmark_start import PROGRAMS, STAGES, benchmark, main, program, run_once, table

TINY = REPOSITORY / "hub_configs" / "tiny-captioner"
PHOTO = REPOSITORY / "hub_configs" / "pictale-default" / "examples" / "dog.jpg"


def test_a_process_passes_all_stages_in_order(tmp_path):
    marks = run_once("Auto classes", TINY, PHOTO, tmp_path)
    assert tuple(marks) == STAGES
    for clock in zip(*marks.values(), strict=True):
        assert list(clock) == sorted(clock) and clock[0] > 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_marks_every_stage(name):
    calls = [node for node in ast.walk(ast.parse(program(name))) if isinstance(node, ast.Call)]
    assert tuple(c.args[0].value for c in calls if getattr(c.func, "id", "") == "mark") == STAGES


def test_medians_over_turns_without_the_first(monkeypatch, capsys):
    turns = iter([100.0] * 3 + [1.0] * 3 + [9.0] * 3 + [3.0] * 3)
    asked = []

    def fake(name, model, photo, place):
        asked.append((name, model.name))
        wall = next(turns)
        return {stage: (wall + i, 0.5) for i, stage in enumerate(STAGES)}

    monkeypatch.setattr(benchmark_start, "run_once", fake)
    report = benchmark(TINY, PHOTO, repeats=3)
    assert asked[:3] == [("floor", "smallest"), ("Auto classes", TINY.name), ("package", TINY.name)]
    for row in report.values():
        assert list(row["seconds"].values()) == [3, 4, 5, 6] and set(row["processor_seconds"].values()) == {0.5}
    assert "| generated | 6.0 (0.5) | 6.0 (0.5) | 6.0 (0.5) |" in table(report)
    turns = iter([2.0] * 6)
    assert main(["--model", str(TINY), "--repeats", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["floor"]["seconds"][STAGES[0]] == 2


def test_what_is_wrong_is_one_sentence(tmp_path, capsys):
    for wrong in (["--model", str(tmp_path)], ["--photo", str(tmp_path / "no.jpg")], ["--repeats", "0"]):
        assert main(wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("Error: ") and said.count("\n") == 1
