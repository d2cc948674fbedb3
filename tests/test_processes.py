"""Two real processes against one with the same global batch, started the way the training script says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import train_captioner, train_skip_thoughts
from training.recipes import read_recipe
from training.tiny_photos import write_tiny_photos
from training.tiny_text import write_tiny_text

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"
STEPS = 4
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(),
    reason="this build of torch has no gloo, which processes without a GPU talk through",
)


def arguments(photos, output, batch_size):
    settings = {"data.train": [str(photos)], "data.validation": [str(photos)], "data.batch_size": batch_size}
    settings |= {"data.cache_dir": str(photos.parent / "features"), "training.output_dir": str(output)}
    # every step is logged and kept; as many photographs as whole batches, or the last ones would be filled up
    settings |= {"training.log_every": 1, "training.save_every": 1, "training.evaluate_every": 2}
    settings |= {"training.max_steps": STEPS, "training.keep_checkpoints": STEPS}
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def read_log(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], [line for line in lines if "cider" in line]


def first_gradients(output):
    """AdamW's first moments after the first step: a tenth of the clipped gradients."""
    path = output / "checkpoints" / "step_00000001" / "optimizer.bin"
    return [entry["exp_avg"] for entry in torch.load(path, weights_only=True)["state"].values()]


def run_in_two_processes(module, recipe, settings, folder, **variables):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", module, str(recipe)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*launch, *(part for text in settings for part in ("--set", text))],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_gloo
def test_two_processes_learn_and_measure_what_one_does_with_the_same_global_batch(tmp_path):
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")
    photos = write_tiny_photos(tmp_path / "tiny-photos")
    one = tmp_path / "one"
    train_captioner.run(read_recipe(RECIPE, train_captioner.CaptionerRecipe, arguments(photos, one, 4)))
    two = tmp_path / "two"
    done = run_in_two_processes("training.train_captioner", RECIPE, arguments(photos, two, 2), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 photographs a step" in done.stderr
    gradients = first_gradients(one)
    assert max(float(g.abs().max()) for g in gradients) > 1e-3
    for ours, theirs in zip(gradients, first_gradients(two), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)
    (steps, metrics), (other_steps, other_metrics) = read_log(one), read_log(two)
    assert len(steps) == len(other_steps) == STEPS and len(metrics) == len(other_metrics) == STEPS // 2
    for ours, theirs in zip(steps, other_steps, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    for ours, theirs in zip(metrics, other_metrics, strict=True):
        for name in ("cider", "distinct_captions", "words"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name


@needs_gloo
def test_two_processes_learn_from_batches_of_sentences_what_one_does(tmp_path, monkeypatch):
    """The two shares of a batch hold different numbers of words; the gradient is of the mean over all of them."""
    monkeypatch.setenv("PICTALE_DATA", str(write_tiny_text(tmp_path / "text")))
    recipe = REPOSITORY / "hub_configs" / "tiny-skip-thoughts" / "recipe.json"

    def settings(output, batch_tokens):
        named = {"data.batch_tokens": batch_tokens, "training.output_dir": str(output), "training.max_steps": STEPS}
        named |= {"training.log_every": 1, "training.save_every": 1, "training.evaluate_every": STEPS}
        named |= {"training.keep_checkpoints": STEPS, "data.cache_dir": str(tmp_path)}
        return [f"{key}={json.dumps(value)}" for key, value in named.items()]

    one, two = tmp_path / "one", tmp_path / "two"
    train_skip_thoughts.run(read_recipe(recipe, train_skip_thoughts.SkipThoughtsRecipe, settings(one, 500)))
    done = run_in_two_processes("training.train_skip_thoughts", recipe, settings(two, 250), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    gradients = first_gradients(one)
    assert max(float(g.abs().max()) for g in gradients) > 1e-3
    for ours, theirs in zip(gradients, first_gradients(two), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for ours, theirs in zip(*logs, strict=True):
        for name in {"loss", "grad_norm", "previous_perplexity", "next_perplexity"} & ours.keys():
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3), name
