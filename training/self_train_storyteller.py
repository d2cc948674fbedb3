"""Let the storyteller learn from the best of its own stories, round after round.

    python -m training.self_train_storyteller hub_configs/storyteller-smollm2-135m/recipe-self.json
    python -m training.self_train_storyteller RECIPE.json --resume

A round, each step of which leaves a file below `OUTPUT/round_N` and is not done again when it is there:

    told.jsonl         stories of training photos, asked for as at run time (`training.storyteller_telling`)
    scores.jsonl       what the judges say of them (`training.storyteller_scores`)
    selected.parquet   the best (`training.storyteller_selection`), of manner `self`; `stories/` has people's, too
    training/          fine-tuning of the model on both, by `data.shares`
    compared.jsonl     what the old and the new model tell of held-out photos, and `compared_scores_*.jsonl`
    result.json        figures, and whether the new model is kept (`training.storyteller_comparison`)

The next round goes on from a model that was kept; one that is not better ends the run. `OUTPUT/best` is the best model
there is: the one that was started from until another is better by the judges while the loss on people's held-out
stories has not risen. Photos of the validation split are never told of in training. A run that was stopped (also by
`training.max_minutes`, or killed) goes on with `--resume`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError, RecipeError
from modeling.pipeline_story import StoryPipeline

from . import train_storyteller
from .data_text import TextSource, load_rows
from .json_lines import JsonLines, write_json
from .loop import LoopOptions, replace_folder
from .recipes import read_recipe, recipe_parser, write_recipe
from .storyteller_comparison import Comparing, loss_difference, paired, verdict
from .storyteller_data import StorytellerData, read_stories
from .storyteller_scores import Judges, Judging, score_stories
from .storyteller_selection import SELF, Selecting, as_rows, mixed, select
from .storyteller_telling import Prompt, Teller, Telling, choose_prompts, flat, styles_of, tell_prompts
from .train_storyteller import Lora, StorytellerRecipe

RECIPE = "recipe.json"
MAY_CHANGE = ("rounds",)  # when a run is gone on with; and how long it may take


@dataclass
class SelfTrainingRecipe:
    """Sections of the recipe.

    Args:
        storyteller: Folder of the model to start from.
        data: Stories by people, whose photos are told of; `shares` names `self`, too.
        training: Of each round, `output_dir` the folder of all of it.
        pipeline: Folder or Hub id whose styles, pages and joint embedding are used; None: the embedded default.
        rounds: At most.
        validation: Stories by people that the held-out loss is measured on, at most.
        seed: Of photos and stories.
        lora: None trains all weights.
    """

    storyteller: str
    data: StorytellerData
    training: LoopOptions
    pipeline: str | None = None
    rounds: int = 1
    validation: int = 360
    seed: int = 0
    telling: Telling = field(default_factory=Telling)
    judging: Judging = field(default_factory=Judging)
    selecting: Selecting = field(default_factory=Selecting)
    comparing: Comparing = field(default_factory=Comparing)
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RecipeError("rounds is 1 or more.")
        if not self.data.shares.get(SELF, 0) > 0:
            raise RecipeError(f"data.shares says how much is learned from the model's own stories: name '{SELF}'.")


class Stopped(PictaleError):
    """A run that has used up its time."""


def check(recipe: SelfTrainingRecipe, resume: bool) -> Path:
    """The output folder. Raises RecipeError for one that holds another run, or a run of another recipe."""
    output, said = Path(recipe.training.output_dir), json.loads(json.dumps(asdict(recipe)))
    file = output / RECIPE
    if output.is_file():
        raise RecipeError(f"{output} is a file: choose a folder as output_dir.")
    if resume and not file.exists():
        raise RecipeError(f"Nothing to resume in {output}: start without --resume.")
    if not resume and output.is_dir() and any(output.iterdir()):
        raise RecipeError(f"{output} holds another run: add --resume to go on with it, or choose another output_dir.")
    if resume:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in said if _lasting(name, said[name]) != _lasting(name, before.get(name))]
        if changed := [name for name in changed if name not in MAY_CHANGE]:
            raise RecipeError(
                f"The run in {output} was begun with another '{changed[0]}': take its {RECIPE}, or start anew."
            )
    if not (Path(recipe.storyteller) / "config.json").is_file():
        raise RecipeError(f"storyteller is the folder of a model, and '{recipe.storyteller}' is none.")
    return output


def _lasting(name: str, value: Any) -> Any:
    if name == "training" and value:
        return {key: one for key, one in value.items() if key not in ("max_minutes", "output_dir")}
    return value


class Round:
    """One round.

    Args:
        recipe: Of the run.
        number: 1 for the first.
        current: Folder of the model that tells, and is trained.
        shop: What all rounds share.
    """

    def __init__(self, recipe: SelfTrainingRecipe, number: int, current: Path, shop: Workshop) -> None:
        self.recipe, self.number, self.current, self.shop = recipe, number, current, shop
        self.folder = Path(recipe.training.output_dir) / f"round_{number}"
        self.about = {"round": number}
        self.folder.mkdir(exist_ok=True)

    @property
    def new(self) -> Path:
        """Folder of the model that is made."""
        return self.folder / "training" / "last"

    def run(self) -> dict[str, Any]:
        """All steps; what `result.json` says."""
        file = self.folder / "result.json"
        if not file.exists():
            self.select()
            self.train()
            write_json(file, self.compare())
        return json.loads(file.read_text(encoding="utf-8"))

    def prompts(self, split: str, telling: Telling) -> list[Prompt]:
        """What is told of; a photo that both splits have never."""
        held = self.shop.photos("validation" if split == "train" else "train")
        seed = f"{self.recipe.seed}/{self.number}/{split}"
        return choose_prompts(self.shop.rows[split], held, styles_of(self.shop.pipe, telling), telling, seed)

    def select(self) -> None:
        """Tell, judge, and choose."""
        report = self.folder / "selected.json"
        if report.exists():
            return
        recipe, shop = self.recipe, self.shop
        shop.judges.prepare()
        prompts = self.prompts("train", recipe.telling)
        told = tell_prompts(
            lambda: Teller(shop.pipe, self.current, recipe.telling),
            prompts,
            JsonLines(self.folder / "told.jsonl", self.about),
        )
        stories = flat(told)
        scores = score_stories(shop.judges, stories, shop.people, JsonLines(self.folder / "scores.jsonl", self.about))
        kept = select(stories, scores, recipe.judging.weights, recipe.selecting)
        reasons = Counter(score["broken"] for score in scores if score["broken"])
        if not kept:
            most = ", ".join(f"{name}: {count}" for name, count in reasons.most_common(3))
            raise DataError(
                f"None of {len(stories)} stories can be learned from ({most}): train the storyteller first."
            )
        people = shop.data("train")
        own = as_rows([stories[i] for i in kept], people)

        def write(folder: Path) -> None:
            _write_parquet(mixed(own, people), folder / "train.parquet")
            _write_parquet(shop.data("validation"), folder / "validation.parquet")

        _write_parquet(own, self.folder / "selected.parquet")
        replace_folder(self.folder / "stories", write)
        counts = {"told": len(stories), "broken": dict(reasons), "selected": len(kept)}
        write_json(report, counts)  # last: with it the step is done
        print(f"round {self.number}: {len(stories)} stories told, {len(kept)} selected", flush=True)

    def training_recipe(self) -> StorytellerRecipe:
        """What `train_storyteller` is asked for."""
        recipe = self.recipe
        return StorytellerRecipe(
            data=replace(recipe.data, stories=str(self.folder / "stories")),
            training=replace(recipe.training, output_dir=str(self.folder / "training")),
            initial=str(self.current),
            lora=recipe.lora,
            validation=recipe.validation,
            samples=0,  # there are stories enough
        )

    def train(self) -> None:
        """Fine-tune. Raises Stopped if its time is up."""
        done = self.folder / "trained.json"
        if done.exists():
            return
        recipe = self.training_recipe()
        begun = (Path(recipe.training.output_dir) / "progress.json").exists()
        if not begun:  # stopped before its first checkpoint
            shutil.rmtree(recipe.training.output_dir, ignore_errors=True)
        result = train_storyteller.run(recipe, resume=begun)
        if result.stopped_by == "max_minutes":
            raise Stopped(f"Stopped after {result.steps} steps of round {self.number}: go on with --resume.")
        write_json(done, dataclasses.asdict(result))

    def compare(self) -> dict[str, Any]:
        """Both models on held-out photos and stories."""
        recipe, shop = self.recipe, self.shop
        telling = replace(recipe.telling, prompts=recipe.comparing.prompts, stories=recipe.comparing.stories)
        prompts = self.prompts("validation", telling)
        kept = JsonLines(self.folder / "compared.jsonl", self.about)
        scores, stories = {}, {}
        for label, model in (("old", self.current), ("new", self.new)):
            told = tell_prompts(lambda model=model: Teller(shop.pipe, model, telling), prompts, kept, label)
            stories[label] = flat(told)
            file = JsonLines(self.folder / f"compared_scores_{label}.jsonl", self.about)
            scores[label] = score_stories(shop.judges, stories[label], shop.people, file, every=True)
        both = {name: {(s["prompt"], s["story"]): i for i, s in enumerate(stories[name])} for name in stories}
        pairs = [key for key in both["old"] if key in both["new"]]
        if not pairs:
            raise DataError(f"Round {self.number}: there is no held-out photo that both models have told of.")
        weights = recipe.judging.weights | {"whole": recipe.comparing.whole}
        report = paired(
            [stories["old"][both["old"][key]] for key in pairs],
            *([scores[name][both[name][key]] for key in pairs] for name in ("old", "new")),
            weights,
            recipe.comparing.draws,
        )
        loss = loss_difference(*self.held_out_losses(), recipe.comparing.draws)
        why = verdict(report, loss, recipe.comparing)
        return {"round": self.number, "kept": why is None, "why_not": why, "judges": report, "loss": loss}

    def held_out_losses(self) -> list[list[list[float]]]:
        """Losses of the tokens of people's held-out stories under the old and the new model."""
        found, evaluation = [], None
        for model in (self.current, self.new):
            recipe = replace(self.training_recipe(), initial=str(model), lora=None)
            learner, tokenizer = train_storyteller.load_model(recipe)
            evaluation = evaluation or train_storyteller.Evaluation(recipe, tokenizer)  # the same examples for both
            with torch.inference_mode():
                found.append(evaluation.token_losses(learner.eval()))
        return found


class Workshop:
    """What all rounds share, each part loaded when it is needed."""

    def __init__(self, recipe: SelfTrainingRecipe) -> None:
        self.recipe = recipe
        self.judges = Judges(lambda: self.pipe, recipe.judging)

    @cached_property
    def pipe(self) -> StoryPipeline:
        return StoryPipeline.from_pretrained(self.recipe.pipeline)

    def data(self, split: str) -> Dataset:
        """People's stories as they stand in their data set."""
        return load_rows(TextSource(self.recipe.data.stories, split=split))

    @cached_property
    def rows(self) -> dict[str, Any]:
        return {split: read_stories(self.recipe.data, split) for split in ("train", "validation")}

    def photos(self, split: str) -> set[tuple[str, str]]:
        """All photos that stories of a split are about."""
        return {photo for row in self.rows[split] for photo in row.photos}

    @cached_property
    def people(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """People's captions of each photo that is told of."""
        return {row.photo: row.captions for rows in self.rows.values() for row in rows if row.captions}


def _write_parquet(rows: Dataset, path: Path) -> None:
    temporary = path.with_name(path.name + ".writing")
    pq.write_table(rows.with_format("arrow")[:], temporary, compression="zstd")
    temporary.replace(path)


def run(recipe: SelfTrainingRecipe, resume: bool = False) -> list[dict[str, Any]]:
    """All rounds; the result of each.

    Raises:
        PictaleError: before any work, for what cannot be done; Stopped if the time is up.
    """
    output = check(recipe, resume)
    shop, current, results = Workshop(recipe), Path(recipe.storyteller), []
    if not resume:  # what is missing is missed before anything is written
        shop.rows, styles_of(shop.pipe, recipe.telling), shop.judges.prepare()
    output.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, output / RECIPE)
    for number in range(1, recipe.rounds + 1):
        this = Round(recipe, number, current, shop)
        result = this.run()
        results.append(result)
        if result["kept"]:
            current = this.new
        if not (output / f"round_{number + 1}" / "result.json").exists():
            _keep(current, output)
        if not result["kept"]:
            break
    return results


def _keep(model: Path, output: Path) -> None:
    """Make `best` a copy of a model, if it is not one already."""
    note = output / "best.json"
    said = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    if said.get("from") != str(model) or not (output / "best").is_dir():
        replace_folder(output / "best", lambda folder: shutil.copytree(model, folder, dirs_exist_ok=True))
        write_json(note, {"from": str(model)})


def main(argv: Sequence[str] | None = None) -> int:
    args = recipe_parser(__doc__).parse_args(argv)
    disable_progress_bar()
    try:
        results = run(read_recipe(args.recipe, SelfTrainingRecipe, args.overrides), args.resume)
    except PictaleError as error:
        print(error, file=sys.stderr)
        return 1
    for result in results:
        total, loss = result["judges"]["total"], result["loss"]
        print(
            f"round {result['round']}: judges {total['value']:+.3f} ({total['low']:+.3f} to {total['high']:+.3f}), "
            f"held-out loss {loss['old']:.3f} -> {loss['new']:.3f}: "
            + ("kept" if result["kept"] else f"the old model stays, for {result['why_not']}")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
