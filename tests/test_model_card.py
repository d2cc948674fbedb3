"""Reports of all evaluations become figures of a folder, tables of its card, and a model-index that the Hub reads."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from modeling.errors import ModelFolderError
from tests.conftest import REPOSITORY
from training.figures import KINDS, command_line, kind_of, measurement, model_index, tables, with_tables, without_place
from training.model_card import add_reports, main, read_figures, with_figures

CAPTIONS = {
    "model": "runs/best", "dataset": "/data/flickr8k", "split": "test", "num_beams": 3, "bleu_1": 61.666,
    "bleu_4": 20.7, "meteor": None, "cider": 52.64, "distinct_captions": 0.896, "latency_ms": 88.1,
    "command": "python -m training.evaluate_captioner --model runs/best --dataset flickr8k --split test",
}  # fmt: skip
SENTENCES = {
    "model": "runs/best",
    "rows": {
        "model": {"tasks": {"sick": {"pearson": 0.82163, "rounds": 6}, "mr": {"accuracy": 69.671, "folds": [1.0]}}},
        "untrained twin": {"tasks": {"sick": {"pearson": 0.6233, "pearson_sd": 0.01}}, "seeds": 2},
        "tf-idf": {"tasks": {"mr": {"accuracy": 78.5}}},
    },
    "paper": {"uni-skip (2400)": {"sick": {"pearson": 0.8477}}},
    "command": "python -m training.evaluate_sentences --model=runs/best --data sentence_eval",
}
RETRIEVAL = {
    "dataset": "flickr8k", "split": "validation", "to_text_r1": 27.2, "to_text_r5": 55.3, "to_text_r10": 69.0,
    "to_text_median_rank": 4.0, "to_image_r1": 20.42, "to_image_r5": 49.7, "to_image_r10": 63.1,
    "to_image_median_rank": 6.0, "rsum": 284.7, "command": "python -m training.evaluate_retrieval --model runs/best",
}  # fmt: skip
STORIES = {
    "systems": {
        "pictale": {"found": {"value": 0.2512, "low": 0.21, "high": 0.29}, "distinct_2": 0.61, "whole_s": 2.0},
        "caption": {"found": {"value": 0.8}, "style": {"value": 0.16, "low": 0.1, "high": 0.2}},
    },
    "dataset": "flickr8k", "split": "validation",
    "command": "python -m training.evaluate_stories --dataset flickr8k --books books",
}  # fmt: skip
PERPLEXITY = {
    "model": "x", "data": ["books", "/data/everyday"], "loss": 3.4, "perplexity_romance": 42.94,
    "perplexity_science_fiction": 45.4,
    "command": "python -m training.train_story_decoder recipe.json --set initial=runs/best --evaluate-only",
}  # fmt: skip
REPORTS = {"captions": CAPTIONS, "sentences": SENTENCES, "retrieval": RETRIEVAL}
REPORTS |= {"stories": STORIES, "perplexity": PERPLEXITY}
CARD = """---
license: mit
tags: [one, two]
---

# A model

Prose before.

<!-- figures: captions -->
<!-- /figures -->

Prose between.

<!-- figures: retrieval -->
old
<!-- /figures -->

Prose behind."""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "my-model"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "README.md").write_text(CARD)
    return place


def measured(kind, **changes):
    return measurement(REPORTS[kind] | changes, "0" * 16, "my-model")


def test_every_kind_of_report_is_known():
    assert {kind: kind_of(report) for kind, report in REPORTS.items()} == {kind: kind for kind in KINDS}
    for wrong in ({}, [], "text", {"dataset": "x", "split": "y"}, None):
        with pytest.raises(ModelFolderError, match="That is no report"):
            kind_of(wrong)
    with pytest.raises(ModelFolderError, match="damaged"):
        measured("sentences", rows={"model": {}})
    with pytest.raises(ModelFolderError, match="name the --command"):
        measured("captions", command=None)


def test_captions():
    one = measured("captions")
    assert one["rows"] == {"beam 3": {"bleu_1": 61.67, "bleu_4": 20.7, "cider": 52.64, "distinct_captions": 0.896}}
    assert (one["data"], one["split"], one["beside"]) == ("flickr8k", "test", [])
    assert one["command"].split(" --model ")[1].startswith("my-model --dataset flickr8k")
    assert "| **beam 3** | 61.7 | 20.7 | 52.6 | 90% |" in tables([one])


def test_sentences():
    one = measured("sentences")
    text = tables([one])
    assert "| | SICK r | MR |" in text and "| **this model** | 0.822 | 69.7 |" in text
    assert "| its untrained twins, mean of 2 | 0.623 | - |" in text and "| paper: uni-skip (2400) | 0.848 | - |" in text
    assert "--model=my-model" in text
    results = model_index([one])  # of the model alone, each task a data set
    assert {(r.dataset_name, r.metric_type, r.metric_value) for r in results} == {
        ("sick", "pearsonr", 0.8216),
        ("mr", "accuracy", 69.67),
    }


def test_retrieval_goes_both_ways():
    one = measured("retrieval")
    assert "| **photo to sentence** | 27.2 | 55.3 | 69.0 | 4 |" in tables([one])
    assert "| **sentence to photo** | 20.4 | 49.7 | 63.1 | 6 |" in tables([one])
    names = {r.metric_name: r.metric_value for r in model_index([one])}
    assert (
        names["R@1 (photo to sentence)"] == 27.2 and names["median rank (sentence to photo)"] == 6 and len(names) == 8
    )


def test_stories_keep_their_intervals():
    one = measured("stories")
    assert "| **pictale** | 25% (21% to 29%) | - | 0.61 |" in tables([one])
    assert "| caption | 80% | 16% (10% to 20%) | - |" in tables([one])
    assert {r.metric_name: r.metric_value for r in model_index([one])} == {"found": 0.2512, "distinct-2": 0.61}


def test_perplexities_by_genre():
    one = measured("perplexity")
    assert "| | romance | science fiction |" in tables([one]) and "| **this model** | 42.9 | 45.4 |" in tables([one])
    assert one["data"] == "books, everyday" and "initial=my-model" in one["command"]


def test_the_hub_reads_what_was_written(folder):
    add_reports(folder, REPORTS.values())
    figures = read_figures(folder)
    assert [one["kind"] for one in figures] == list(REPORTS)
    read = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert read.data.license == "mit" and read.data.tags == ["one", "two"] and read.data.model_name == "my-model"

    def by_name(results):
        return sorted(results, key=lambda r: (r.dataset_name, r.metric_name))

    assert by_name(read.data.eval_results) == by_name(model_index(figures))


def test_prose_stays_and_twice_is_once(folder):
    add_reports(folder, [CAPTIONS, CAPTIONS | {"num_beams": 1, "cider": 48.9}, RETRIEVAL])
    text = (folder / "README.md").read_text()
    for prose in ("# A model", "Prose before.\n", "Prose between.\n", "Prose behind."):
        assert text.count(prose) == 1
    body = text.split("---\n", 2)[2]
    assert "\nold\n" not in body
    assert body.index("beam 1") < body.index("Prose between") < body.index("photo to sentence")
    assert text.count("python -m training.evaluate_captioner") == 1
    add_reports(folder, [CAPTIONS, CAPTIONS | {"num_beams": 1, "cider": 48.9}, RETRIEVAL])
    assert (folder / "README.md").read_text() == text
    assert main([str(folder)]) == 0 and (folder / "README.md").read_text() == text


def test_a_row_measured_again_is_replaced_and_others_stay(folder):
    add_reports(folder, [SENTENCES])
    add_reports(folder, [SENTENCES | {"rows": {"model": {"tasks": {"mr": {"accuracy": 71.84}}}}}], "words expanded")
    again = {"model": {"tasks": {"sick": {"pearson": 0.9}}}}
    figures = add_reports(folder, [SENTENCES | {"rows": again, "paper": {}, "command": "python -m other"}])
    text = tables(figures)
    assert text.count("**") == 4 and "| **this model** | 0.900 | - |" in text
    assert "| **words expanded** | - | 71.8 |" in text and "| its untrained twins, mean of 2 | 0.623 | - |" in text
    assert text.index("words expanded") < text.index("untrained twins")


def test_figures_of_other_weights_go(folder):
    add_reports(folder, [CAPTIONS])
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFolderError, match="other weights"):
        read_figures(folder)
    assert [one["kind"] for one in add_reports(folder, [RETRIEVAL])] == ["retrieval"]
    assert "Nothing was measured" in (folder / "README.md").read_text()  # of captions


def test_figures_of_a_pipeline_are_those_of_its_components(tmp_path):
    pipeline, inside, beside = tmp_path / "pipe", tmp_path / "pipe" / "eyes", tmp_path / "my-decoder"
    for place in (inside, beside):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"weights")
    components = {"captioner": "eyes", "encoder": "org/elsewhere", "decoder": "me/my-decoder"}
    (pipeline / "pipeline.json").write_text(json.dumps({"components": components, "styles": []}))
    assert set(add_reports(pipeline, [STORIES])[0]["components"]) == {"captioner", "decoder"}
    assert len(read_figures(pipeline)) == 1
    (beside / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFolderError, match="other weights"):
        read_figures(pipeline)
    assert len(add_reports(pipeline, [STORIES])) == 1
    shutil.rmtree(beside)  # published by itself, the components elsewhere
    assert len(read_figures(pipeline)) == 1


def test_places_in_a_card():
    one = measured("captions")
    assert without_place(CARD, [one, measured("stories")]) == ["stories"]
    everywhere = "<!-- figures -->\n<!-- /figures -->"
    assert without_place(everywhere, [one, measured("stories")]) == []
    assert tables([one]) in with_tables(everywhere, [one])
    with pytest.raises(ModelFolderError, match="figures: poems, but there are captions, sentences"):
        with_tables("<!-- figures: poems -->\n<!-- /figures -->", [one])
    with pytest.raises(ModelFolderError, match="front matter"):
        with_figures("---\nlicense: [\n---\ntext", "name", [one])


def test_commands_are_those_that_others_can_call():
    said = ["--model", "/home/a/runs/best", "--json", "--captions", "/tmp/c.json", "--set", "initial=/x/y", "--limit=5"]
    assert command_line("evaluate_captioner", said) == (
        "python -m training.evaluate_captioner --model best --set initial=y --limit=5"
    )
    assert command_line("evaluate_stories", ["--stories=/tmp/s", "--system", "one draft:candidates=1"]).endswith(
        "--system 'one draft:candidates=1'"
    )


def test_the_command_line_tells_what_is_wrong(folder, tmp_path, capsys):
    def said(*arguments):
        assert main([str(a) for a in arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("Error: ") and message.count("\n") == 1
        return message

    card = (folder / "README.md").read_text()
    report = tmp_path / "report.json"
    assert "no model folder" in said(tmp_path, "--report", report)
    assert "has no figures yet" in said(folder)
    assert "No such file" in said(folder, "--report", report)
    for content, expected in (("", "empty"), ("| a table |", "not JSON"), ("{}", "That is no report")):
        report.write_text(content)
        assert expected in said(folder, "--report", report)
    report.write_text(json.dumps(CAPTIONS) + "\n" + json.dumps({"dataset": "x"}))
    assert "That is no report" in said(folder, "--report", report)
    assert (folder / "README.md").read_text() == card and not (folder / "figures.json").exists()
    report.write_text(json.dumps(CAPTIONS) + "\n" + json.dumps(STORIES))
    assert main([str(folder), "--report", str(report)]) == 0
    told = capsys.readouterr()
    assert "2 measurements" in told.out and "no table of stories: put the lines <!-- figures: stories -->" in told.err
    (folder / "figures.json").write_text('[{"kind": "captions"}]')
    assert "damaged" in said(folder)


FOLDERS = sorted(path.parent for path in (REPOSITORY / "hub_configs").glob("*/figures.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_published_cards_say_what_was_measured_on_these_weights(folder, request):
    if (folder / "pipeline.json").is_file():
        request.getfixturevalue("shipped_storyteller")
    figures = read_figures(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_figures(text, folder.name, figures) == text, f"run: python -m training.model_card {folder}"
    assert without_place(text, figures) == []
