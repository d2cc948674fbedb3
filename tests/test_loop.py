"""Parts of the training loop that no model is needed for."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from modeling import ModelFolderError, RecipeError
from tests.tiny import tiny_encoder, tiny_tokenizer
from training.export_weights import export_weights
from training.loop import LoopOptions, learning_rate_factor, prepare_output_dir, replace_folder, train


def factors(total=100, **options):
    options = LoopOptions("out", **options)
    return [learning_rate_factor(step, options, total) for step in range(total + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_falling_schedules(schedule):
    rates = factors(schedule=schedule, warmup_steps=10, final_learning_rate_ratio=0.1)
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[-1] == pytest.approx(0.1)


def test_constant_schedule_cools_down_at_the_end():
    rates = factors(schedule="constant", cooldown_steps=20, final_learning_rate_ratio=0.0)
    assert rates[:81] == [1.0] * 81
    assert rates[90] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.0)


def test_replace_folder_never_leaves_half_a_folder(tmp_path):
    target = tmp_path / "best"
    replace_folder(target, lambda path: (path / "a").write_text("old"))

    def fail(path):
        (path / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError):
        replace_folder(target, fail)
    assert (target / "a").read_text() == "old"
    replace_folder(target, lambda path: (path / "a").write_text("new"))
    assert (target / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_output_dir_rules(tmp_path):
    assert prepare_output_dir(tmp_path / "run", resume=False).is_dir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    prepare_output_dir(tmp_path / "run", resume=False)  # ended before its first checkpoint: start over
    (tmp_path / "run" / "progress.json").write_text("{}")
    with pytest.raises(RecipeError, match="--resume"):
        prepare_output_dir(tmp_path / "run", resume=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        prepare_output_dir(tmp_path / "file", resume=False)


class Line(torch.nn.Module):
    """y = w x, with the interface that the loop expects."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, y):
        from types import SimpleNamespace

        return SimpleNamespace(loss=(self.w * x - y).square().mean())


def run(tmp_path, name="run", batch=4, resume=False, **options):
    data = [{"x": torch.tensor(float(i)), "y": torch.tensor(2.0 * i)} for i in range(1, 9)]
    model = Line()
    result = train(
        model,
        DataLoader(data, batch_size=batch),
        LoopOptions(str(tmp_path / name), learning_rate=0.1, log_every=1, **options),
        evaluate=lambda m: {"loss": float((m.w - 2).abs())},
        save=lambda m, folder: torch.save(m.w.detach(), folder / "w.pt"),
        resume=resume,
    )
    return model, result


def test_training_keeps_the_best_weights_and_tells_why_it_stopped(tmp_path):
    _, result = run(tmp_path, max_steps=60, evaluate_every=10, save_every=30, schedule="constant")
    assert result.steps == 60 and result.stopped_by == "max_steps" and result.best_metric < 0.2
    best = torch.load(tmp_path / "run" / "best" / "w.pt", weights_only=True)
    assert float((best - 2).abs()) == pytest.approx(result.best_metric, abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == list(range(1, 61))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000060"]


def test_patience_and_time_stop_a_run(tmp_path):
    _, result = run(tmp_path, "a", max_steps=500, evaluate_every=1, save_every=100, patience=3)
    assert result.stopped_by == "patience" and result.steps < 500
    _, result = run(tmp_path, "b", max_steps=10**6, evaluate_every=10**6, save_every=10**6, max_minutes=1e-3)
    assert result.stopped_by == "max_minutes"


def test_patience_counts_evaluations_below_the_best_also_over_a_resume(tmp_path):
    scores = iter([10.0, 30.0, 20.0, 30.0, 25.0, 99.0])

    def part(max_steps, resume):
        return train(
            Line(),
            DataLoader([{"x": torch.ones(1), "y": torch.ones(1)}] * 4, batch_size=2),
            LoopOptions(
                str(tmp_path / "run"),
                max_steps=max_steps,
                evaluate_every=1,
                save_every=1,
                metric="cider",
                greater_is_better=True,
                patience=3,
                schedule="constant",
            ),
            evaluate=lambda m: {"cider": next(scores)},
            save=lambda m, folder: torch.save(m.w.detach(), folder / "w.pt"),
            resume=resume,
        )

    assert part(3, resume=False).stopped_by == "max_steps"
    result = part(100, resume=True)
    assert (result.steps, result.stopped_by, result.best_metric, result.best_step) == (5, "patience", 30.0, 2)


class SharedLine(Line):
    """Its weight is a view of a larger piece of memory, as those of a recurrent layer are on a GPU."""

    def __init__(self):
        super().__init__()
        self.w.data = torch.zeros(3)[1:2]


def test_weights_that_are_views_of_one_piece_of_memory_are_resumed(tmp_path):
    def part(name, max_steps, resume=False):
        model = SharedLine()
        data = [{"x": torch.tensor(float(i)), "y": torch.tensor(2.0 * i)} for i in range(1, 9)]
        options = {"learning_rate": 0.1, "schedule": "constant", "evaluate_every": 2, "save_every": 2}
        train(
            model,
            DataLoader(data, batch_size=4),
            LoopOptions(str(tmp_path / name), max_steps=max_steps, **options),
            evaluate=lambda m: {"loss": float((m.w - 2).abs())},
            save=lambda m, folder: torch.save(m.w.detach().clone(), folder / "w.pt"),
            resume=resume,
        )
        return float(model.w.detach())

    whole = part("whole", 4)
    part("cut", 2)
    assert part("cut", 4, resume=True) == whole != 0


def test_accumulating_two_halves_is_one_whole_batch(tmp_path):
    whole, _ = run(tmp_path, "whole", batch=8, max_steps=5, schedule="constant")
    halves, _ = run(tmp_path, "halves", batch=4, max_steps=5, schedule="constant", gradient_accumulation_steps=2)
    torch.testing.assert_close(whole.w, halves.w)


def test_a_diverging_run_says_so(tmp_path):
    data = [{"x": torch.tensor(1.0), "y": torch.tensor(float("nan"))}] * 4
    with pytest.raises(RecipeError, match="lower learning_rate"):
        train(
            Line(),
            DataLoader(data, batch_size=2),
            LoopOptions(str(tmp_path / "run"), max_steps=2, log_every=1),
            evaluate=lambda m: {"loss": 0.0},
            save=lambda m, f: None,
        )


def test_an_unknown_metric_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match="'bleu' is not evaluated; choose from loss"):
        run(tmp_path, max_steps=1, metric="bleu")


def test_exported_weights_take_half_the_space_and_load_as_float32(tmp_path):
    from modeling import PictaleSkipThoughtsEncoder

    encoder = tiny_encoder()
    encoder.save_pretrained(tmp_path / "run")
    tiny_tokenizer().save_pretrained(tmp_path / "run")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("a card")
    export_weights(tmp_path / "run", tmp_path / "hub")
    assert (tmp_path / "hub" / "README.md").read_text() == "a card"
    again = PictaleSkipThoughtsEncoder.from_pretrained(tmp_path / "hub")
    assert again.dtype == torch.float32
    for name, weight in encoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight.half().float(), rtol=0, atol=0)
    with pytest.raises(ModelFolderError, match="has no"):
        export_weights(tmp_path, tmp_path / "other")
