"""The comparison of engines, on a tiny storyteller."""

import pytest

from tests.tiny_storyteller import save_tiny_storyteller
from training import benchmark_storyteller
from training.benchmark_storyteller import COLUMNS, LOAD, MAKE, NEEDS, main, missing, row


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_tiny_storyteller(tmp_path_factory.mktemp("runs") / "best")


@pytest.mark.parametrize("name", list(NEEDS))
def test_engines_write_behind_one_prompt_and_several(name, trained, tmp_path):
    if lacking := missing(name):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    if name not in ("own", "own-float32", "transformers"):
        pytest.skip("needs the sizes of the whole model")
    MAKE[name](trained, tmp_path / name)
    write = LOAD[name](tmp_path / name, 1)
    write([[5, 6, 7]], 3)
    write([[5, 6, 7]] * 2, 3)
    write([[5, 6, 7], [8, 9, 10]], 3)


def test_the_table_names_what_is_not_installed(trained, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_storyteller.NEEDS, "ctranslate2", ("no_such_package",))
    assert main([str(trained), "--engines", "ctranslate2"]) == 0
    told = capsys.readouterr().out
    assert all(column in told for column in COLUMNS) and "not installed: no_such_package" in told


def test_a_line_has_a_number_for_each_column():
    assert len(row("own", dict.fromkeys(COLUMNS, 1.0)).split()) == 1 + len(COLUMNS)


def test_requests_that_cannot_be_met(trained, tmp_path, capsys):
    assert main([str(tmp_path)]) == 1 and main([str(trained), "--engines", "steam"]) == 1
    assert "engines are own" in capsys.readouterr().err
