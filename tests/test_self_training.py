"""The storyteller learns from its own stories: every step resumes, only good stories are kept, worse models are not."""

import hashlib
import json
import re

import pytest
from datasets import load_dataset

from modeling import StoryPipeline
from modeling.errors import RecipeError
from modeling.story_engine import StoryEngine
from tests.storytelling import GOOD, MODELS, SaidEngine, write_pipeline
from training import self_train_storyteller as self_training
from training.json_lines import JsonLines
from training.recipes import read_recipe
from training.self_train_storyteller import SelfTrainingRecipe, run
from training.story_systems import Library
from training.storyteller_data import StoryRow, StorytellerData, read_stories
from training.storyteller_scores import BookStyles
from training.storyteller_telling import Teller, Telling, choose_prompts, flat, tell_prompts
from training.tiny_text import write_tiny_text

NAMES = [f"{first}{second}" for first in ("Old ", "Young ", "Tall ", "") for second in ("Igor", "Emma", "Paul", "Ruth")]


# -- what is told of -------------------------------------------------------------------------------------------------
def row(number, **changes):
    said = {"style": "song", "register": "", "manner": "plain", "length": "long", "page": "", "recalled": ()}
    said |= {"captions": ("a dog runs",), "seen": ("A dog runs.",), "title": "", "story": "", "kind": "one"}
    return StoryRow(**(said | {"photos": (("set", str(number)),)} | changes))


def test_prompts_are_of_other_photos_than_held_out_ones():
    rows = [row(i) for i in range(20)] + [row(3), row(20, seen=("A bear eats.",)), row(21, seen=()), row(22)]
    rows[5] = row(5, photos=(("set", "5"), ("set", "held")))
    held = {("set", "held"), ("set", "22")}
    telling = Telling(prompts=36, lengths={"short": 1.0})
    prompts = choose_prompts(rows, held, ["romance", "horror", "mystery"], telling, 1)
    numbers = [int(prompt.row.photo[1]) for prompt in prompts]
    assert sorted(numbers[:19]) == [i for i in range(20) if i != 5] and len(set(numbers[19:])) == 17
    assert {prompt.length for prompt in prompts} == {"short"}
    assert [prompt.style for prompt in prompts[:4]] == ["romance", "horror", "mystery", "romance"]
    told = [(prompt.row.photo, prompt.style) for prompt in prompts]
    assert len(set(told)) == 36  # the second time in another style
    assert prompts == choose_prompts(rows, held, ["romance", "horror", "mystery"], telling, 1)
    assert prompts != choose_prompts(rows, held, ["romance", "horror", "mystery"], telling, 2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("candidates", [1, 2])
def test_the_engine_tells_several_stories_of_a_prompt(pipeline, tmp_path, candidates):
    pipe = StoryPipeline.from_pretrained(pipeline)
    telling = Telling(prompts=2, stories=3, candidates=candidates, lengths={"short": 1.0})
    prompts = choose_prompts([row(0, recalled=("A dog.",)), row(1)], (), ["romance"], telling, 0)
    file = JsonLines(tmp_path / "told.jsonl", {})
    records = tell_prompts(lambda: Teller(pipe, MODELS / "tiny-storyteller", telling), prompts, file)
    stories = flat(records)
    assert len(records) == 2 and 4 <= len(stories) <= 6 and len({one["text"] for one in stories}) >= 4
    assert all(one["style"] == "romance" and one["photo"][0] == "set" for one in stories)
    assert all(len(one["text"].split()) <= 68 + 140 * (candidates > 1) for one in stories)
    assert pipe.storyteller is None
    assert tell_prompts(lambda: pytest.fail("told again"), prompts, JsonLines(file.path, {})) == records


# -- a whole run -----------------------------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path, monkeypatch):
    """`tiny-stories` with two photos in both splits, `tiny-books`; the new model's stories can be told apart."""
    pytest.importorskip("sklearn", reason="the style judge needs scikit-learn")
    monkeypatch.setenv("PICTALE_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_tiny_text(tmp_path)
    file = tmp_path / "tiny-stories" / "validation.parquet"
    rows = load_dataset(str(tmp_path / "tiny-stories"))["validation"]
    renamed = rows.map(lambda r: {"photo_id": r["photo_id"] if r["photo_id"] in "67" else f"held {r['photo_id']}"})
    renamed.to_parquet(file)
    return tmp_path


class Storytellers:
    """Engines of all folders: the first model breaks off every other story, the others those that `worse` says."""

    def __init__(self, monkeypatch, worse=False):
        self.worse, self.engines, self.left = worse, [], 10**9
        monkeypatch.setattr(StoryEngine, "load", classmethod(lambda _, folder, **__: self.load(folder)))

    def load(self, folder):
        self.engines.append(SaidEngine(folder, self.say))
        return self.engines[-1]

    @property
    def opened(self):
        return sum(engine.opened for engine in self.engines)

    def say(self, folder, prompt, seed):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        number = int(hashlib.sha256(f"{prompt} {seed}".encode()).hexdigest()[:8], 16)
        what = re.search(r"Photo: A (\w+ \w+)", prompt)[1]
        text = GOOD.format(what=what, who=NAMES[number % len(NAMES)], number=("two", "three", "ten")[number % 3])
        is_new = folder.name == "last"
        return text.removesuffix(".") if (self.worse if is_new else number % 2) else text


def make_recipe(data, pipeline, **changes):
    said = {
        "storyteller": str(MODELS / "tiny-storyteller"),
        "pipeline": str(pipeline),
        "data": {"stories": "tiny-stories", "shares": {"self": 1.0, "plain": 0.2}, "batch_tokens": 2048},
        "training": {
            "output_dir": str(data / "run"),
            "max_steps": 4,
            "learning_rate": 0.01,
            "evaluate_every": 4,
            "save_every": 2,
            "log_every": 2,
        },
        "validation": 4,
        "telling": {"prompts": 12, "stories": 3, "lengths": {"medium": 1.0}},
        "judging": {"books": ["tiny-books"], "base": str(MODELS / "tiny-storyteller")},
        "selecting": {"share": 0.5, "openings": 20},
        "comparing": {"prompts": 10, "stories": 2, "loss_rise": 10.0, "draws": 200},
    } | changes
    (data / "round.json").write_text(json.dumps(said))
    return read_recipe(data / "round.json", SelfTrainingRecipe)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_better_model_is_kept_and_goes_on(data, pipeline, monkeypatch):
    Storytellers(monkeypatch)
    first, second = run(make_recipe(data, pipeline, rounds=3))
    output = data / "run"
    assert first["kept"] and first["judges"]["whole"]["new"] == 1 and first["judges"]["total"]["low"] > 0
    assert not second["kept"] and "do not find it better" in second["why_not"]  # both tell whole stories now
    assert not (output / "round_3").exists()
    assert weights(output / "best") == weights(output / "round_1" / "training" / "last")
    assert weights(output / "best") != weights(MODELS / "tiny-storyteller")
    assert json.loads((output / "round_2" / "training" / "recipe.json").read_text())["initial"].endswith(
        "round_1/training/last"
    )


def test_a_worse_model_is_not_kept(data, pipeline, monkeypatch, capsys):
    Storytellers(monkeypatch, worse=True)
    make_recipe(data, pipeline, rounds=2)
    assert self_training.main([str(data / "round.json")]) == 0
    assert "the old model stays, for the judges do not find it better" in capsys.readouterr().out
    assert weights(data / "run" / "best") == weights(MODELS / "tiny-storyteller")
    assert not (data / "run" / "round_2").exists()


def test_nor_is_one_whose_loss_has_risen(data, pipeline, monkeypatch):
    Storytellers(monkeypatch)
    (result,) = run(make_recipe(data, pipeline, comparing={"prompts": 10, "loss_rise": -100.0, "draws": 100}))
    assert not result["kept"] and "the loss on people's held-out stories has risen" in result["why_not"]
    assert weights(data / "run" / "best") == weights(MODELS / "tiny-storyteller")


def test_nothing_of_the_validation_split_is_learned_from(data, pipeline, monkeypatch):
    Storytellers(monkeypatch)
    recipe = make_recipe(data, pipeline, telling={"prompts": 200, "stories": 1, "lengths": {"medium": 1.0}})
    run(recipe)
    folder = data / "run" / "round_1"
    held = {photo for one in read_stories(recipe.data, "validation") for photo in one.photos}
    train = {photo for one in read_stories(recipe.data, "train") for photo in one.photos}
    assert {("tiny", "6"), ("tiny", "7"), ("tiny", "held 1")} <= held and ("tiny", "6") in train

    def photos(name):
        return {tuple(record["photo"]) for record in JsonLines(folder / name, about(folder / name)).records}

    assert photos("told.jsonl") and not photos("told.jsonl") & held and photos("told.jsonl") <= train
    assert photos("compared.jsonl") and not photos("compared.jsonl") & train
    own = [
        one for one in read_stories(StorytellerData(stories=str(folder / "stories")), "train") if one.manner == "self"
    ]
    assert own and not {photo for one in own for photo in one.photos} & held
    whole = load_dataset(str(folder / "stories"), cache_dir=str(data / "other"))
    assert whole["validation"].to_list() == load_dataset(str(data / "tiny-stories"))["validation"].to_list()
    assert sum(manner != "self" for manner in whole["train"]["manner"]) == 48
    assert {one["captions"][0] for one in whole["train"] if one["manner"] == "self"} <= {
        one["captions"][0] for one in whole["train"] if one["manner"] == "plain"
    }
    assert max(len(whole["train"]["story"][-1].split()), 54) <= 90 and whole["train"]["seen"][-1]


def about(path):
    return json.loads(path.read_text().splitlines()[0])["about"]


@pytest.mark.parametrize("step", ["select", "train", "compare", "held_out_losses", "_keep"])
def test_a_run_that_was_killed_goes_on(data, pipeline, monkeypatch, step):
    tellers = Storytellers(monkeypatch)
    recipe = make_recipe(data, pipeline)
    place = self_training if step == "_keep" else self_training.Round
    whole = getattr(place, step)
    with monkeypatch.context() as killed:
        killed.setattr(place, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    assert getattr(place, step) is whole and not (data / "run" / "best").exists()
    before, kept = tellers.opened, {path: path.stat().st_mtime_ns for path in (data / "run").rglob("*.jsonl")}
    with pytest.raises(RecipeError, match="add --resume"):
        run(recipe)
    (result,) = run(recipe, resume=True)
    assert result["kept"] and weights(data / "run" / "best") != weights(MODELS / "tiny-storyteller")
    assert before == {"select": 0, "train": 12, "compare": 12, "held_out_losses": 32, "_keep": 32}[step]
    assert tellers.opened == 12 + 2 * 10  # each prompt once, each held-out one by both models
    if step in ("held_out_losses", "_keep"):
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_stories_that_were_told_are_not_told_again(data, pipeline, monkeypatch):
    tellers = Storytellers(monkeypatch)
    tellers.left = 20
    recipe = make_recipe(data, pipeline)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    file = data / "run" / "round_1" / "told.jsonl"
    first = file.read_bytes()
    assert 2 < first.count(b"\n") < 8
    with file.open("ab") as lines:
        lines.write(b'{"label": "", "prompt": 5, "sto')
    tellers.left = 10**9
    run(recipe, resume=True)
    assert file.read_bytes().startswith(first) and file.read_bytes().count(b"\n") == 13
    killed = (data / "run" / "round_1" / "selected.parquet").read_bytes()
    (data / "run").rename(data / "before")
    run(recipe)
    assert (data / "run" / "round_1" / "selected.parquet").read_bytes() == killed
    assert file.read_bytes() == (data / "before" / "round_1" / "told.jsonl").read_bytes()


def test_training_that_was_killed_goes_on_from_its_checkpoint(data, pipeline, monkeypatch):
    Storytellers(monkeypatch)
    save = self_training.train_storyteller.save_model
    calls = []

    def stops(learner, folder, tokenizer):
        calls.append(folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(learner, folder, tokenizer)

    monkeypatch.setattr(self_training.train_storyteller, "save_model", stops)
    recipe = make_recipe(data, pipeline)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    training = data / "run" / "round_1" / "training"
    assert json.loads((training / "progress.json").read_text())["step"] == 2
    run(recipe, resume=True)
    steps = [json.loads(line) for line in (training / "log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps if "grad_norm" in one] == [2, 4]
    resumed = weights(training / "last")
    (data / "run").rename(data / "before")
    run(recipe)
    assert weights(training / "last") == resumed


def test_adapters_are_merged(data, pipeline, monkeypatch):
    pytest.importorskip("peft")
    Storytellers(monkeypatch)
    (result,) = run(make_recipe(data, pipeline, lora={"rank": 2}))
    made = data / "run" / "best"
    assert result["kept"] and not list(made.glob("adapter*"))
    assert weights(made) != weights(MODELS / "tiny-storyteller")


def test_the_style_judge_has_not_read_the_books_it_is_tried_on():
    pytest.importorskip("sklearn", reason="the style judge needs scikit-learn")
    said = {"romance": "Anna loved the young count", "horror": "Igor feared the cold shadow"}
    library = Library()
    for book in range(16):
        genre = ("romance", "horror")[book % 2]
        for ending in ("in the garden", "by the lake"):  # a word of its book alone, twice: rarer ones do not count
            library.texts.append(f"{said[genre]} {ending} of number{book}.")
            library.genres.append(genre)
            library.books.append(book)
    judge = BookStyles(library)
    assert judge.right == 1.0
    read = {word for word in judge.vectorizer.vocabulary_ if word.startswith("number")}
    assert len(read) == 14  # of each genre a book is kept
    first, second = judge.probabilities(["She loved him.", "He feared it."], ["romance", "horror"])
    assert first > 0.5 and second > 0.5
    assert judge.probabilities(["She loved him."] * 2, ["horror", "mystery"]) == [pytest.approx(1 - first), None]


def test_time_is_up(data, pipeline, monkeypatch, capsys):
    Storytellers(monkeypatch)
    make_recipe(data, pipeline)
    place = str(data / "round.json")
    assert self_training.main([place, "--set", "training.max_minutes=1e-9"]) == 1
    assert "of round 1: go on with --resume." in capsys.readouterr().err
    assert not (data / "run" / "round_1" / "trained.json").exists()
    assert self_training.main([place, "--resume"]) == 0
    assert "kept" in capsys.readouterr().out


def test_mistakes_are_one_sentence(data, pipeline, monkeypatch, capsys):
    tellers = Storytellers(monkeypatch)
    make_recipe(data, pipeline)
    place = str(data / "round.json")

    def said(*changes, resume=False):
        arguments = [place, *(["--resume"] if resume else [])]
        for change in changes:
            arguments += ["--set", change]
        assert self_training.main(arguments) == 1
        assert not (data / "run" / "best").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert said(resume=True).endswith("start without --resume.")
    assert said('storyteller="nowhere"') == "storyteller is the folder of a model, and 'nowhere' is none."
    assert said('data.shares={"plain": 1.0}').endswith("name 'self'.")
    assert said('telling.styles=["mystery"]') == "telling.styles: the pipeline has no style 'mystery'."
    assert "'funny' is no length or style" in said('telling.styles=["funny"]')
    assert said('judging.weights={"beauty": 1}').startswith("judging.weights: there is no judge 'beauty'")
    assert said(f'judging.base="{data / "nothing"}"').startswith(f"judging.base '{data / 'nothing'}' is no language")
    assert said("selecting.share=0").startswith("selecting: share is above 0")
    assert "unknown key 'tellings'" in said("tellings.prompts=3")
    assert not (data / "run").exists() and tellers.opened == 0
    tellers.say = lambda *_: "Never an end"
    assert "can be learned from (has no end: 36): train the storyteller first." in said()
    assert said("telling.prompts=13", resume=True).startswith(f"The run in {data / 'run'} was begun with another")


def test_the_shipped_recipe_is_read():
    recipe = read_recipe(MODELS / "storyteller-smollm2-135m" / "recipe-self.json", SelfTrainingRecipe)
    assert recipe.rounds > 1 and recipe.data.shares["self"] > recipe.data.shares["plain"]
