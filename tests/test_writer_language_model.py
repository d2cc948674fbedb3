"""Causal language models as writers: a tiny random one always, SmolLM2's GGUF file where it is installed."""

import json
import shutil
from contextlib import closing

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling import ModelFolderError, PictaleError, Source, Story, StoryError
from modeling.__main__ import main
from modeling.language_model import LanguageModel, ModelPlace, expected_pace, in_bytes
from modeling.sampling import SamplingOptions, bar_repeats, draw
from modeling.story_prompt import GENRES
from modeling.style_pages import Page
from modeling.text import is_content_word
from modeling.visit import Seen, Visit, Wishes
from modeling.writer_language_model import LanguageModelWriter
from tests.tiny import save_tiny_pipeline, tiny_pipeline

CAPTIONS = ["A dog runs on the beach.", "A red house."]
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WISHES = {"style": "romance", "seed": 7}
PAGE = Page("It ran. It stood.", Source("Kim", "Rudyard Kipling", 1901))


def tiny_language_model(chat: bool = True, **settings) -> LanguageModel:
    """Random weights; its words are letters and pieces of English."""
    pieces = ByteLevelBPETokenizer()
    text = [
        f"{kind} {traits} {caption}" for (kind, traits), caption in zip(GENRES.values(), CAPTIONS * 4, strict=False)
    ]
    pieces.train_from_iterator(text, vocab_size=400, min_frequency=1, special_tokens=["<s>", "</s>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT if chat else None
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=2048, initializer_range=1.0)
    config.update(settings)
    return LanguageModel(LlamaForCausalLM(config), tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    place = tmp_path_factory.mktemp("models") / "tiny-lm"
    model.model.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def pipe(model):
    pipe = tiny_pipeline()
    pipe.writers["tiny"] = LanguageModelWriter(model, pipe.pages)
    return pipe


def prompts(pipe, monkeypatch) -> list[str]:
    """The texts that the model is given from now on."""
    seen = []
    plain = LanguageModel.stream

    def stream(self, prompt, *arguments):
        seen.append(self.tokenizer.decode(prompt))
        return plain(self, prompt, *arguments)

    monkeypatch.setattr(LanguageModel, "stream", stream)
    return seen


# -- sampling ---------------------------------------------------------------------------------------------------------
def test_remembering_gives_what_reading_all_again_gives(model):
    """The loop with the model's memory of the text, against drawing from the whole text at every step."""
    options = SamplingOptions(max_new_tokens=30, no_repeat_ngram_size=3, min_new_tokens=30, presence_penalty=2.0)
    prompt = model.tokenizer("A dog runs on the")["input_ids"]
    told, shown = (model.tokenizer(text)["input_ids"] for text in ("machines, other worlds", "A red house."))
    text = "".join(model.stream(prompt, torch.Generator().manual_seed(5), options, told, shown))

    generator, ids = torch.Generator().manual_seed(5), list(prompt)
    barred = [*model.ends, *model._barred]
    for _ in range(30):
        with torch.no_grad():
            scores = model.model(torch.tensor([ids]), use_cache=False).logits[:, -1].float()
        written = ids[len(prompt) :]
        for token in range(scores.size(-1)):
            weight = 2.0 if is_content_word(model.tokenizer.convert_ids_to_tokens(token).strip("Ġ")) else 0.3
            scores[:, token] -= weight * (written.count(token) + (token in told))
        scores[:, barred] = -torch.inf
        bar_repeats(scores, torch.tensor([[*shown, *told, *written]]), 3)
        ids.append(int(draw(scores, generator, options)))
    assert len(text) > 30 and model.tokenizer.decode(ids[len(prompt) :]).rstrip("\ufffd") == text


def test_half_characters_wait(model):
    """A character of several tokens comes whole."""
    ids = model.tokenizer("ä€😀", add_special_tokens=False)["input_ids"]
    assert len(ids) > 5

    class Saying:
        device = torch.device("cpu")
        said = iter([*ids, model.ends[0]])

        def __call__(self, **_):
            logits = torch.full((1, 1, len(model.tokenizer)), -100.0)
            logits[..., next(self.said)] = 100.0
            return type("Output", (dict,), {"logits": logits})()

    said = LanguageModel.__new__(LanguageModel)
    vars(said).update(vars(model), model=Saying(), _few_logits=False)
    pieces = list(said.stream([1], torch.Generator(), SamplingOptions(max_new_tokens=50)))
    assert pieces == ["ä", "€", "😀", ""]


def test_a_seed_is_a_story(pipe):
    first = pipe.tell(CAPTIONS, writer="tiny", **WISHES)
    torch.manual_seed(3)
    assert pipe.tell(CAPTIONS, writer="tiny", **WISHES) == first
    assert pipe.tell(CAPTIONS, writer="tiny", **(WISHES | {"seed": 8})).story != first.story
    grown = list(pipe.stream(CAPTIONS, writer="tiny", **WISHES))
    assert grown[-1] == first.story and len(grown) > 3
    assert all(later.startswith(earlier) for earlier, later in zip(grown, grown[1:], strict=False))
    assert len(first.story.split()) <= 48 + 40 and first.title == "" and first.follows == ()


def test_whoever_stops_asking_has_stopped_the_model(pipe, model, monkeypatch):
    calls = []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    with closing(pipe.stream(CAPTIONS, writer="tiny", **(WISHES | {"length": "long"}))) as growing:
        next(growing)
        computed = len(calls)
    assert 0 < computed == len(calls) < 200


# -- prompts ----------------------------------------------------------------------------------------------------------
def test_a_chat_model_finds_its_answer_begun(pipe, monkeypatch, example_photos):
    seen = prompts(pipe, monkeypatch)
    story = pipe.start_story(example_photos[0], captions=CAPTIONS, writer="tiny", **WISHES)
    assert seen[0].startswith("[system] You are a storyteller.") and "longing" in seen[0]
    shows = "The photo shows: A dog runs on the beach. A red house."
    ask = f"[user] Write a passage of a romance, 28 to 48 words.\n\n{shows}"
    assert seen[0].endswith(f"{ask}\n[assistant] ")
    told = story.passages[0].text
    pipe.continue_story(story, sentence="It was  <b>late</b>.", seed=2)
    assert seen[1].endswith(f"{ask}\n[assistant] {told} It was  <b>late</b>.")  # as it was written
    pipe.continue_story(story, example_photos[1], captions=["A horse."], seed=2)
    scene = "[user] Go on with the story from there. Now the photo shows: A horse.\n[assistant] "
    assert seen[2].endswith(f"[assistant] {told}\n{scene}")


def test_a_model_without_conversation_goes_on_with_a_text(monkeypatch):
    pipe = tiny_pipeline()
    pipe.writers["plain"] = LanguageModelWriter(tiny_language_model(chat=False), lambda task: PAGE)
    seen = prompts(pipe, monkeypatch)
    story = pipe.continue_story(Story(), sentence="It was late.", writer="plain", **WISHES)
    start = "Write a romance, short.\nPage: It ran. It stood.\n"
    assert seen == [f"{start}Story: It was late."]
    result = pipe.tell(CAPTIONS, writer="plain", **WISHES)
    assert seen[1] == f"{start}Photo: A dog runs on the beach. A red house.\nStory:"
    assert story.passages[-1].writer == "plain"
    assert result.follows == story.passages[-1].follows == (PAGE.source,)


def test_a_template_without_system(pipe, model, monkeypatch):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    seen = prompts(pipe, monkeypatch)
    pipe.tell(CAPTIONS, writer="tiny", **WISHES)
    assert seen[0].startswith("[user] You are a storyteller.") and "\n\nWrite a passage of" in seen[0]


def test_a_long_story_is_read_from_its_end_and_a_small_window_is_told(pipe, monkeypatch):
    seen = prompts(pipe, monkeypatch)
    story = Story().add(pipe.continue_story(Story(), sentence="It was late.", writer="tiny", **WISHES).steps[0])
    story = story.edit(0, "The dog sat by the sea. " * 200 + "Then it rained.")
    for window in (1500, 900):
        monkeypatch.setattr(LanguageModel, "window", window)
        pipe.continue_story(story, writer="tiny", **WISHES)
        given = pipe.writers["tiny"].model.tokenizer(seen[-1], add_special_tokens=False)["input_ids"]
        assert len(given) <= window - 3 * (48 + 40) and "Then it rained. " in seen[-1] + " "
    assert seen[-1].count("dog") < seen[-2].count("dog")
    monkeypatch.setattr(LanguageModel, "window", 200)
    with pytest.raises(StoryError, match="reads only 200 tokens"):
        pipe.continue_story(story, writer="tiny", **WISHES)


def test_a_small_window_leaves_the_page_out_first(pipe, monkeypatch):
    pipe.writers["tiny"] = LanguageModelWriter(pipe.writers["tiny"].model, lambda task: PAGE)
    seen = prompts(pipe, monkeypatch)
    whole = pipe.tell(CAPTIONS, writer="tiny", **WISHES)
    assert PAGE.text in seen[0] and whole.follows == (PAGE.source,)
    words = len(pipe.writers["tiny"].model.tokenizer(seen[0])["input_ids"])
    monkeypatch.setattr(LanguageModel, "window", 3 * (48 + 40) + words - 1)
    without = pipe.tell(CAPTIONS, writer="tiny", **WISHES)
    assert PAGE.text not in seen[1] and without.follows == ()


def test_captions_that_say_the_same_are_said_once(pipe, monkeypatch):
    seen = prompts(pipe, monkeypatch)
    same = ["A brown dog runs on a path.", "A brown dog runs on a road.", "A path.", "Two men with a ball."]
    pipe.tell(same, writer="tiny", **WISHES)
    assert "The photo shows: A brown dog runs on a path. Two men with a ball.\n" in seen[0]


# -- finding and loading ----------------------------------------------------------------------------------------------
def test_a_folder_by_name(folder, monkeypatch):
    pipe = tiny_pipeline()
    monkeypatch.setattr(LanguageModel, "load", lambda *_: pytest.fail("it is too early to load it"))
    assert pipe.open_writer(str(folder)) == "tiny-lm"
    size = (folder / "model.safetensors").stat().st_size
    said = f"tiny-lm, a language model of {in_bytes(size)}, not measured here yet, on two cores probably faster"
    assert pipe.about_writer("tiny-lm").startswith(said)
    monkeypatch.undo()
    story = pipe.tell(CAPTIONS, writer=str(folder), **WISHES).story
    assert story == pipe.tell(CAPTIONS, writer="tiny-lm", **WISHES).story
    assert "measured here: " in pipe.about_writer("tiny-lm") and list(pipe.writers)[-1] == "tiny-lm"
    passage = pipe.continue_story(Story(), sentence="It was late.", writer=str(folder), **WISHES).passages[-1]
    assert passage.writer == "tiny-lm"  # a story tells nobody where it lies


def test_what_a_name_stands_for(tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert ModelPlace.of(str(tmp_path / "one.gguf")) == ModelPlace("one", tmp_path, gguf="one.gguf")
    assert ModelPlace.of(str(tmp_path)) == ModelPlace(tmp_path.name, tmp_path, gguf="one.gguf")
    assert ModelPlace.of("a/b@main") == ModelPlace("a/b@main", repo_id="a/b@main")
    assert ModelPlace.of("a/b/c.Q4.gguf") == ModelPlace("c.Q4", repo_id="a/b", gguf="c.Q4.gguf")
    assert [ModelPlace.of(name) for name in ("nobody", "a/b/c", "/a/b", "")] == [None] * 4
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFolderError, match="has no language model"):
        ModelPlace.of(str(tmp_path))


def test_a_hub_id_is_sized_and_only_what_is_needed_is_downloaded(folder, monkeypatch):
    from modeling import language_model

    def entry(path, size):
        return type("File", (), {"path": path, "size": size})

    listed = {"model.safetensors": 2 * 135_000_000, "pytorch_model.bin": 9, "model-00001-of-00001.safetensors": 9}
    listed |= {"onnx/model.onnx": 9, "config.json": 700, "tokenizer.json": 9, "chat_template.jinja": 9, "model.gguf": 9}
    monkeypatch.setattr(
        language_model.HfApi, "list_repo_tree", lambda *_, **__: [entry(*item) for item in listed.items()]
    )
    wanted = {}
    monkeypatch.setattr(language_model, "download", lambda name, what, **hub: wanted.update({name: hub}) or folder)
    pipe = tiny_pipeline()
    pipe.open_writer("org/small")
    assert "a language model of 270 MB to download" in pipe.about_writer("org/small")
    assert pipe.tell(CAPTIONS, writer="org/small", **WISHES).story
    needed = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert wanted == {"org/small": {"allow_patterns": needed}}
    listed.pop("model.safetensors"), listed.pop("model-00001-of-00001.safetensors")
    with pytest.raises(ModelFolderError, match="has no weights that are read here"):
        pipe.tell(CAPTIONS, writer="org/pickled", **WISHES)
    assert not pipe.has_writer("org/pickled") and pipe.has_writer("org/small")
    listed = None  # the Hub does not tell: still no pickles
    assert pipe.tell(CAPTIONS, writer="org/silent", **WISHES).story
    assert wanted["org/silent"]["allow_patterns"] == ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def test_what_cannot_be_loaded_is_one_sentence(folder, tmp_path, monkeypatch):
    pipe = tiny_pipeline()

    def refusal(name, kind=ModelFolderError):
        with pytest.raises(kind) as caught:
            pipe.tell(CAPTIONS, writer=str(name), **WISHES)
        return str(caught.value)

    assert "There is no writer 'nobody'" in refusal("nobody", PictaleError)
    assert "only local files were allowed" in refusal("nobody/at-home")
    bert = tmp_path / "bert"
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(bert)
    shutil.copy(folder / "model.safetensors", bert)
    assert "is no causal language model (bert)" in refusal(bert)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "broken" in refusal(broken)
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "my_own", "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text("raise SystemExit('this must not run')")
    assert "cannot be loaded" in refusal(foreign)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install gguf" in refusal(tmp_path / "x.gguf")
    monkeypatch.undo()
    monkeypatch.setattr(ModelPlace, "parameters", 1e15)
    assert "needs about 2000000.0 GB of memory" in refusal(folder)


def test_paces():
    assert expected_pace(135e6) == "faster than one reads" and expected_pace(7e9).startswith("very slow")
    assert [in_bytes(n) for n in (269_060_552, 1_700_000_000, 3_200_000, 900)] == [
        "269 MB",
        "1.7 GB",
        "3.2 MB",
        "0.1 MB",
    ]


# -- who may choose ---------------------------------------------------------------------------------------------------
def test_neither_a_story_file_nor_a_visitor_chooses_what_is_downloaded(pipe, monkeypatch):
    monkeypatch.setattr(ModelPlace, "of", lambda *_: pytest.fail("nothing may be looked for"))
    story = pipe.continue_story(Story(), sentence="It was late.", writer="tiny", **WISHES)
    foreign = Story.from_json(story.to_json().replace('"tiny"', '"evil/model"'))
    with pytest.raises(StoryError, match="was written by 'evil/model', which is not open here"):
        pipe.continue_story(foreign)
    assert pipe.continue_story(foreign, writer="storyteller", seed=1).passages[-1].writer == "storyteller"
    seen = Seen("photo.jpg", ())
    with pytest.raises(StoryError, match="no writer 'evil/model' here"):
        next(Visit().tell(pipe, Wishes("romance", writer="evil/model"), seen, {}))


def test_in_the_terminal(folder, tmp_path, capsys):
    model = str(save_tiny_pipeline(tmp_path / "models"))
    arguments = ["--sentence", "It was late.", "--model", model, "--style", "romance", "--json"]
    assert main([*arguments, "--writer", str(folder)]) == 0
    captured = capsys.readouterr()
    before, after = (line for line in captured.err.splitlines() if line.startswith("writer: "))
    assert "not measured here yet" in before and "words a second" in after
    assert json.loads(captured.out)["story"].startswith("It was late.\n\n")
    assert main([*arguments, "--writer", "nobody"]) == 2
    assert "There is no writer 'nobody'" in capsys.readouterr().err


# -- a real one -------------------------------------------------------------------------------------------------------
def test_smollm2_tells_and_goes_on(smollm2):
    """SmolLM2-135M-Instruct, from its GGUF file."""
    pipe = tiny_pipeline()
    pipe.writers["smollm2"] = writer = LanguageModelWriter(smollm2, pipe.pages)
    wishes = WISHES | {"writer": "smollm2"}
    story = pipe.continue_story(Story(), sentence="A brown dog ran along the beach.", **wishes)
    text = story.passages[-1].text
    assert 20 <= len(text.split()) <= 48 + 40 and text.endswith((".", "!", "?", "”", "…"))
    assert text[0] in "“" + text[0].upper()
    assert "<|im" not in text and "*" not in text and writer.speed > 0
    assert smollm2.window == 8192 and smollm2.tokenizer.chat_template
