"""Caption metrics equal their reference; the evaluation measures what the model writes and says what it cannot."""

import json
import os
import shutil

import numpy as np
import pytest

from modeling.errors import DataError, RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from tests.tiny import tiny_captioner, tiny_tokenizer
from training import caption_sources, evaluate_captioner
from training.caption_sources import CaptionSplit
from training.evaluate_captioner import (
    EvaluationOptions,
    LoadedCaptioner,
    caption_split,
    describe_captions,
    evaluate_all,
    markdown_table,
    training_captions,
)
from training.figures import measurement
from training.metrics_captions import bootstrap_interval, cider, has_java, plain_tokenize, score_captions
from training.tiny_photos import COLOURS, SHAPES, draw, write_tiny_photos

REFERENCES = [
    ["A dog runs on grass.", "The dog is running,\nand it isn't slow!"],
    ["Two men play football (on a T-shirt pitch)", "men with a ball; two teams"],
    ["a red car"],
    ["A man's dog -- brown & white -- sleeps...", "dog at 5 o'clock"],
]
WRITTEN = ["A dog is running on the grass.", "Two men with a football.", "A red car isn't here.", "A brown dog sleeps."]


@pytest.fixture(autouse=True)
def without_java(monkeypatch, request):
    """METEOR takes twenty seconds to start: only the tests that are about Java use it."""
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")
    monkeypatch.setattr(caption_sources, "_said", set())
    if "java" not in request.keywords:
        monkeypatch.setattr("training.metrics_captions.has_java", lambda: False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained captioner that says something else of every photograph."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    captioner = tiny_captioner()
    captioner.generation_config.suppress_tokens = [0, 1, 3]
    captioner.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    PictaleImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


# -- metrics -----------------------------------------------------------------------------------------------------------
needs_java = pytest.mark.skipif(not has_java(), reason="PTB tokenization and METEOR need Java")


@pytest.mark.slow
@pytest.mark.java
@needs_java
def test_every_metric_is_that_of_the_reference_evaluation(monkeypatch):
    """COCOEvalCap, the program behind the papers' figures, on the same captions. SPICE downloads a parser: left out."""
    from pycocoevalcap import eval as reference
    from pycocoevalcap.meteor import meteor
    from pycocotools.coco import COCO

    class NoSpice:
        def method(self):
            return "SPICE"

        def compute_score(self, truth, written):
            return 0.0, []

    program = meteor.Meteor()  # one for both: it takes ten seconds to start
    monkeypatch.setattr(meteor, "Meteor", lambda: program)
    monkeypatch.setattr(reference, "Meteor", lambda: program)
    monkeypatch.setattr(reference, "Spice", NoSpice)
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(REFERENCES))],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "caption": text}
            for i, group in enumerate(REFERENCES)
            for j, text in enumerate(group)
        ],
    }
    coco.createIndex()
    evaluation = reference.COCOEvalCap(
        coco, coco.loadRes([{"image_id": i, "caption": text} for i, text in enumerate(WRITTEN)])
    )
    evaluation.evaluate()
    scored = score_captions(WRITTEN, REFERENCES)
    assert scored.tokenizer == "ptb" and not scored.missing
    names = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | {
        "rouge_l": "ROUGE_L",
        "cider": "CIDEr",
        "meteor": "METEOR",
    }
    assert scored.scores.keys() == names.keys()
    for name, theirs in names.items():
        assert scored.scores[name] == pytest.approx(100 * evaluation.eval[theirs], abs=0.006), name
    each = [100 * evaluation.imgToEval[i]["CIDEr"] for i in range(len(WRITTEN))]
    assert list(scored.cider_each) == pytest.approx(each)


def test_perfect_captions_score_high_and_swapped_ones_low():
    right = [group[0] for group in REFERENCES]
    assert cider(right, REFERENCES) > 200 > 20 > cider(right[1:] + right[:1], REFERENCES)


def test_scores_have_the_papers_scale_and_say_what_is_missing():
    scored = score_captions([group[0] for group in REFERENCES], REFERENCES)
    assert scored.scores["bleu_1"] == pytest.approx(100, abs=0.01)
    assert scored.scores["rouge_l"] == pytest.approx(100, abs=0.01)
    assert "meteor" not in scored.scores and scored.missing == {"meteor": "no Java"}
    assert "not comparable" in scored.tokenizer
    assert np.mean(scored.cider_each) == pytest.approx(scored.scores["cider"], abs=0.006)


def fake_java(folder, script):
    folder.mkdir()
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.java
@pytest.mark.skipif(os.name != "posix", reason="the false Java is a shell script")
def test_a_java_that_fails_costs_meteor_and_the_tokenizer_but_not_the_rest(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", fake_java(tmp_path / "bin", "echo no heap >&2; exit 1"))
    scored = score_captions(WRITTEN, REFERENCES)
    assert scored.missing["meteor"].startswith("its Java program failed")
    assert scored.tokenizer.startswith("plain (the PTB tokenizer") and scored.scores["cider"] > 0
    assert capfd.readouterr().err == ""


@pytest.mark.java
@pytest.mark.skipif(os.name != "posix", reason="the false Java is a shell script")
@needs_java
def test_meteor_that_dies_after_its_first_answers_is_left_out(tmp_path, monkeypatch):
    real = shutil.which("java")
    script = f'case "$1" in -cp) exec {real} "$@";; esac\nread a; echo 1; read a; exit 1'
    monkeypatch.setenv("PATH", fake_java(tmp_path / "bin", script))
    scored = score_captions(WRITTEN, REFERENCES)
    assert scored.tokenizer == "ptb" and "failed" in scored.missing["meteor"]


@pytest.mark.java
@needs_java
def test_plain_tokens_are_ptb_tokens_on_plain_captions():
    from training.metrics_captions import _tokenize

    texts = [["A dog runs, on grass."], ["Two men - one in red - play football!", "", "odd\u2028line\rbreaks"]]
    assert _tokenize(texts, True) == _tokenize(texts, False)


def test_plain_tokenize():
    assert plain_tokenize("A T-shirt, isn't it?") == "a t-shirt isn't it"


def test_captions_without_their_references_cannot_be_scored():
    with pytest.raises(DataError, match="1 captions cannot be scored against references of 4"):
        score_captions(["a dog"], REFERENCES)


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(3).normal(50, 20, 400)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    standard_error = values.std() / 20
    assert values.mean() - low == pytest.approx(1.96 * standard_error, rel=0.15)
    assert high - values.mean() == pytest.approx(1.96 * standard_error, rel=0.15)
    assert bootstrap_interval([7.0] * 5) == (7.0, 7.0)


# -- the evaluation ----------------------------------------------------------------------------------------------------
def split_of(images, captions=None):
    return CaptionSplit("mine", images, [str(i) for i in range(len(images))], captions or [["a dog"]] * len(images))


IMAGES = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]


def test_captions_do_not_depend_on_batches_nor_on_neighbours_that_cannot_be_read(model, capsys):
    captioner = LoadedCaptioner(str(model))
    alone = caption_split(captioner, split_of(IMAGES), EvaluationOptions(batch_size=1))[3]
    images = [b"torn", *IMAGES[:4], None, *IMAGES[4:]]
    together = caption_split(captioner, split_of(images), EvaluationOptions(batch_size=3))[3]
    assert len(set(alone.values())) > 3
    assert list(together) == [1, 2, 3, 4, 6, 7, 8, 9] and list(together.values()) == list(alone.values())
    assert "2 of 10 images cannot be read and are skipped (number 0, number 5)" in capsys.readouterr().err
    with pytest.raises(DataError, match="no photograph can be read"):
        caption_split(captioner, split_of([b"", None]), EvaluationOptions())


def test_references_are_never_shown_to_the_model(model):
    captioner, options = LoadedCaptioner(str(model)), EvaluationOptions(num_beams=(1,), latency_photos=0)
    results = [
        evaluate_captioner.evaluate_captions(captioner, split_of(IMAGES, [[text]] * len(IMAGES)), options)[0]
        for text in ("was house dog", "blue beach")
    ]
    assert results[0][1] == results[1][1] and results[0][0]["bleu_1"] != results[1][0]["bleu_1"]


def test_several_widths_are_each_what_one_alone_gives(model, photos):
    options = EvaluationOptions(num_beams=(1, 4), latency_photos=0)
    both = evaluate_all(str(model), str(photos), "validation", options)
    for report, captions in both:
        alone = evaluate_captioner.evaluate(
            str(model), str(photos), "validation", report["num_beams"], latency_photos=0
        )
        assert alone == (report, captions)
    assert both[0][1] != both[1][1]
    assert [report["generation"]["num_beams"] for report, _ in both] == [1, 4]


def test_settings_of_generate_are_obeyed(model, photos):
    longest = evaluate_captioner.evaluate(
        str(model), str(photos), "validation", 1, latency_photos=0, generation={"max_new_tokens": 2}
    )
    assert max(len(caption.split()) for caption in longest[1].values()) <= 2
    sampled = [
        evaluate_captioner.evaluate(
            str(model), str(photos), "validation", 1, latency_photos=0, generation={"do_sample": True}, seed=seed
        )[1]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_variety_of_captions():
    captions = ["A dog runs.", "a dog runs", "A cat's T-shirt."]
    described = describe_captions(captions, vocabulary=24, seen={"a dog runs"})
    assert described == {
        "distinct_captions": 0.6667,
        "mean_words": 3.0,
        "words_used": len({"a", "dog", "runs", "cat's", "t-shirt"}),
        "vocabulary_used": round(5 / 24, 4),
        "seen_in_training": 0.6667,
    }
    assert "seen_in_training" not in describe_captions(captions, 24, None)


def test_training_captions_come_from_the_recipe_or_by_name(tmp_path, photos):
    named = training_captions(str(tmp_path), [str(photos)])
    assert "a red circle" in named and len(named) == 24
    with pytest.raises(DataError, match="no recipe.json"):
        training_captions(str(tmp_path), None)
    (tmp_path / "recipe.json").write_text(json.dumps({"data": {"train": [str(photos)]}}))
    assert training_captions(str(tmp_path), None) == named
    (tmp_path / "best").mkdir()
    assert training_captions(str(tmp_path / "best"), None) == named


def test_a_report_without_training_data_says_so(model, photos):
    report, _ = evaluate_captioner.evaluate(str(model), str(photos), "validation", latency_photos=0)
    assert "seen_in_training" not in report and "--training-data" in report["not_measured"]["seen_in_training"]
    with pytest.raises(DataError, match="nowhere"):
        evaluate_captioner.evaluate(str(model), str(photos), "validation", training_data=["./nowhere"])


def test_report_as_json(model, photos, capsys, tmp_path):
    written = tmp_path / "captions.json"
    arguments = [
        "--model",
        str(model),
        "--dataset",
        str(photos),
        "--latency-photos",
        "2",
        "--json",
        "--bootstrap",
        "50",
    ]
    arguments += ["--training-data", str(photos), "--captions", str(written), "--generate", "no_repeat_ngram_size=2"]
    assert evaluate_captioner.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["photographs"] == 8 and report["skipped"] == 0
    assert report["latency_ms"] > 0 and report["latency_batch_ms"] > 0
    assert {"bleu_1", "bleu_4", "rouge_l", "cider", "distinct_captions", "mean_words"} <= report.keys()
    assert report["seen_in_training"] == 0 and report["generation"]["no_repeat_ngram_size"] == 2
    assert report["cider_interval"][0] <= report["cider"] <= report["cider_interval"][1]
    assert len(json.loads(written.read_text())) == 8
    one = measurement(report, "0" * 16, "mine")
    assert one["rows"]["beam 3"]["cider"] == pytest.approx(report["cider"], rel=1e-3)
    assert str(photos) not in one["command"] and "--captions" not in one["command"]


def test_report_as_a_table(model, photos, capsys):
    arguments = ["--model", str(model), "--dataset", str(photos), "--latency-photos", "0", "--num-beams", "1,2"]
    assert evaluate_captioner.main([*arguments, "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| beams | BLEU-1 |") and "METEOR" not in table[0] and len(table) == 4
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 1", "| 2"]
    assert evaluate_captioner.main(arguments) == 0
    text = capsys.readouterr().out
    assert "\n".join(table) in text and "photographs        8" in text
    assert evaluate_captioner.main([*arguments, "--json"]) == 0
    assert [json.loads(line)["num_beams"] for line in capsys.readouterr().out.splitlines()] == [1, 2]


def test_a_metric_that_one_report_lacks_is_a_dash():
    assert markdown_table([{"num_beams": 1, "cider": 5.04}, {"num_beams": 3, "cider": 6.0, "meteor": 7.0}]) == (
        "| beams | METEOR | CIDEr |\n| --- | --- | --- |\n| 1 | - | 5.0 |\n| 3 | 7.0 | 6.0 |"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-beams", "1,x"], "takes a width or several"),
        (["--num-beams", "0"], "takes a width or several"),
        (["--generate", "colour=3"], "'colour' cannot be set; there are max_new_tokens"),
        (["--generate", "top_k"], "takes KEY=VALUE"),
        (["--generate", "top_k=many"], "the value is a number"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--generate", "do_sample=true", "--generate", "temperature=-1"], "cannot be generated with these settings"),
        (["--split", "winter"], "has no split 'winter'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(model, photos, capsys, arguments, message):
    assert evaluate_captioner.main(["--model", str(model), "--dataset", str(photos), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: ") and message in error


def test_options_are_checked_in_python_too():
    with pytest.raises(RecipeError, match="latency_photos"):
        EvaluationOptions(latency_photos=-1)
