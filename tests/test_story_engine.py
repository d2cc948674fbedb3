"""The engine of the storyteller, on a tiny random one: what it writes, for one and for many, and how it stops."""

import contextlib
import gc
import json
import shutil
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling import story_jobs, story_scheduler
from modeling.errors import ModelFolderError, StoryError
from modeling.sampling import SamplingOptions
from modeling.story_engine import StoryEngine
from modeling.story_network import StoryNetwork, quantized_rows, quickest_precision
from tests.tiny_storyteller import TEXTS, save_tiny_storyteller

GREEDY = SamplingOptions(temperature=0.0)
FREE = SamplingOptions(temperature=1.0, top_k=50, top_p=1.0)
MANY = 24  # tokens
PRECISIONS = ["float32", *(["int8"] if hasattr(torch, "_weight_int8pack_mm") else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_storyteller(tmp_path_factory.mktemp("models") / "storyteller")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(params=PRECISIONS)
def any_engine(request, folder):
    with contextlib.closing(StoryEngine.load(folder, precision=request.param)) as engine:
        yield engine


@pytest.fixture
def engine(folder):
    with contextlib.closing(StoryEngine.load(folder, precision="float32")) as engine:
        yield engine


def generated(model, ids, count=MANY):
    """What transformers writes behind some tokens, the most probable one by one."""
    ids = torch.tensor([list(ids)])
    told = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return tuple(told[0, ids.size(1) :].tolist())


def log_probs(model, ids, new):
    """Of each of some new tokens behind others, read in one go."""
    with torch.inference_mode():
        found = model(torch.tensor([[*ids, *new]])).logits[0].log_softmax(-1)
    return [float(found[len(ids) + place - 1, token]) for place, token in enumerate(new)]


def written(engine, text, **wishes):
    with engine.open(text) as state:
        return state.write(**{"sampling": FREE, "max_tokens": MANY, **wishes}).result()


# -- what is written ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", TEXTS)
def test_the_most_probable_tokens_are_those_of_transformers(engine, model, text):
    (found,) = written(engine, text, sampling=GREEDY, allow_end=False)
    assert found.ids == generated(model, engine.encode(text)) and found.ended == "length"
    assert found.text == engine.decode(found.ids).rstrip("\ufffd")
    assert found.log_probs == pytest.approx(log_probs(model, engine.encode(text), found.ids), abs=1e-3)
    assert found.log_prob == pytest.approx(sum(found.log_probs))


def test_a_prompt_of_several_parts_is_read_like_a_short_one(engine, model):
    text = " ".join(TEXTS * 2)
    assert len(engine.encode(text)) > 2 * story_scheduler.PROMPT_PART
    (found,) = written(engine, text, sampling=GREEDY, allow_end=False)
    assert found.ids == generated(model, engine.encode(text))


def test_continuations_side_by_side_do_not_see_each_other(engine, model):
    together = written(engine, TEXTS[0], seeds=range(5), allow_end=False)
    assert len({one.ids for one in together}) > 1
    for one in together:
        assert one.log_probs == pytest.approx(log_probs(model, engine.encode(TEXTS[0]), one.ids), abs=1e-3)


def alike(engine):
    """Wishes by which a text is the same to the last bit, or, where rows may differ in theirs, to the last token."""
    return {"sampling": FREE if engine.network.precision == "int8" else GREEDY, "max_tokens": MANY}


def test_a_seed_means_the_same_whoever_else_is_there(any_engine):
    wishes = alike(any_engine)
    alone = [written(any_engine, text, seeds=[1, 2], **wishes) for text in TEXTS]
    states = [any_engine.open(TEXTS[place % 3]) for place in range(12)]
    writings = [state.write([1, 2], **wishes) for state in states]
    for place, writing in enumerate(writings):
        if any_engine.network.precision == "int8":
            assert writing.result() == alone[place % 3]
        else:
            assert [one.ids for one in writing.result()] == [one.ids for one in alone[place % 3]]
    for state in states:
        state.close()


def test_threads_share_the_steps(any_engine):
    wishes = alike(any_engine)
    alone = {seed: written(any_engine, TEXTS[seed % 3], seeds=[seed], **wishes)[0].ids for seed in range(8)}
    found = {}

    def visitor(seed):
        found[seed] = written(any_engine, TEXTS[seed % 3], seeds=[seed], **wishes)[0].ids

    threads = [threading.Thread(target=visitor, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_other_seeds_and_temperatures_write_other_things(engine):
    (one,), (other,) = written(engine, TEXTS[0], seeds=[1]), written(engine, TEXTS[0], seeds=[2])
    assert one.ids != other.ids
    cold = SamplingOptions(temperature=1e-4, top_k=50)
    (cool,) = written(engine, TEXTS[0], sampling=cold, allow_end=False)
    assert cool.ids == written(engine, TEXTS[0], sampling=GREEDY, allow_end=False)[0].ids


def test_other_precisions_are_close(folder, model):
    for precision in ("int8", "bfloat16")[0 if "int8" in PRECISIONS else 1 :]:
        with contextlib.closing(StoryEngine.load(folder, precision=precision)) as engine:
            (found,) = written(engine, TEXTS[0], sampling=GREEDY, allow_end=False, max_tokens=8)
        told = log_probs(model, engine.encode(TEXTS[0]), found.ids)
        assert sum(abs(a - b) for a, b in zip(found.log_probs, told, strict=True)) / len(told) < 0.3


# -- going on ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokens", [None, 1, 4, MANY])
def test_going_on_is_like_reading_everything_anew(engine, model, tokens):
    with engine.open(TEXTS[1]) as state:
        before = engine.encode(TEXTS[1])
        for seeds, kept in (((1, 2, 3), 1), ((4,), 0), ((5, 6), 1)):
            found = state.write(seeds, FREE, max_tokens=MANY, allow_end=False).result()
            for one in found:
                assert one.log_probs == pytest.approx(log_probs(model, before, one.ids), abs=1e-3)
            state.keep(kept, tokens)
            before += found[kept].ids[:tokens]
            assert state.ids == tuple(before[len(engine.encode(TEXTS[1])) :])
            assert state.text == engine.decode(state.ids)
        (last,) = state.write((0,), GREEDY, max_tokens=8, allow_end=False).result()
    assert last.ids == generated(model, before, 8)


def test_one_may_write_again_without_keeping_anything(engine):
    with engine.open(TEXTS[0]) as state:
        first = state.write([1, 2], FREE, max_tokens=MANY).result()
        assert state.write([1, 2], FREE, max_tokens=MANY).result() == first
        state.keep(0, tokens=0)
        assert state.write([1, 2], FREE, max_tokens=MANY).result() == first


def test_continuations_that_end_early_do_not_disturb_the_others(engine, model):
    with engine.open(TEXTS[0]) as state:
        found = state.write(range(6), FREE, lambda text: " " in text.strip(), MANY).result()
        assert len({len(one.ids) for one in found}) > 1
        for one in found:
            told = one.log_probs[: len(one.ids)]
            assert told == pytest.approx(log_probs(model, engine.encode(TEXTS[0]), one.ids), abs=1e-3)


# -- rules -------------------------------------------------------------------------------------------------------------
def runs(ids, size):
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]


def test_no_run_is_repeated_within_a_story_or_copied_from_a_page(engine):
    (page,) = written(engine, TEXTS[0], sampling=GREEDY, allow_end=False, max_tokens=60)
    assert len(set(runs(page.ids, 2))) < len(runs(page.ids, 2))
    rule = SamplingOptions(temperature=0.0, no_repeat_ngram_size=2)
    text = engine.decode(page.ids)
    with engine.open(TEXTS[0], page=text, told="A dog runs on the beach.") as state:
        for _ in range(3):
            state.write([0], rule, max_tokens=20, allow_end=False).result()
            state.keep()
        told = [*engine.encode(" A dog runs on the beach."), *state.ids]
    assert len(set(runs(told, 2))) == len(runs(told, 2))
    shown = set(runs(engine.encode(f" {' '.join(text.split())}"), story_jobs.PAGE_RUN))
    assert not shown & set(runs(told, story_jobs.PAGE_RUN))


def test_words_that_were_written_become_rarer_with_a_penalty(engine):
    plain = written(engine, TEXTS[0], sampling=GREEDY, allow_end=False, max_tokens=60)[0].ids
    penalty = SamplingOptions(temperature=0.0, presence_penalty=40.0)
    assert len(set(written(engine, TEXTS[0], sampling=penalty, allow_end=False, max_tokens=60)[0].ids)) > len(
        set(plain)
    )


def test_special_tokens_are_not_written(engine):
    hot = SamplingOptions(temperature=50.0, top_k=1000, top_p=1.0)
    found = written(engine, TEXTS[0], seeds=range(8), sampling=hot, allow_end=False, max_tokens=60)
    assert not {token for one in found for token in one.ids} & {0, 1}


def test_what_ends_a_continuation(engine):
    hot = SamplingOptions(temperature=50.0, top_k=1000, top_p=1.0)
    found = written(engine, TEXTS[0], seeds=range(20), sampling=hot, max_tokens=200)
    ends = [one for one in found if one.ended == "end"]
    assert ends and all(len(one.log_probs) == len(one.ids) + 1 and 1 not in one.ids for one in ends)
    most = SamplingOptions(temperature=50.0, top_k=1000, top_p=1.0, min_new_tokens=200)
    assert {one.ended for one in written(engine, TEXTS[0], seeds=range(20), sampling=most, max_tokens=200)} == {
        "length"
    }
    (stopped,) = written(engine, TEXTS[0], until=lambda text: len(text) > 5)
    assert stopped.ended == "stop" and len(stopped.text) > 5 >= len(engine.decode(stopped.ids[:-1]).rstrip("\ufffd"))


def test_a_story_that_has_ended_is_not_gone_on_with(engine):
    hot = SamplingOptions(temperature=50.0, top_k=1000, top_p=1.0)
    with engine.open(TEXTS[0]) as state:
        found = state.write(range(20), hot, max_tokens=200).result()
        state.keep(next(i for i, one in enumerate(found) if one.ended == "end"))
        assert state.ended
        with pytest.raises(StoryError, match="come to its end"):
            state.write()


# -- streaming and stopping --------------------------------------------------------------------------------------------
def test_a_continuation_can_be_watched_as_it_grows(engine):
    with engine.open(TEXTS[0]) as state:
        seen = [one for (one,) in state.write([3], FREE, max_tokens=MANY, allow_end=False)]
    assert [len(one.ids) for one in seen] == sorted({len(one.ids) for one in seen})
    assert all(seen[-1].text.startswith(one.text) for one in seen)
    assert seen[-1].ended == "length" and not any(one.ended for one in seen[:-1])


@pytest.mark.parametrize("how", ["close", "with", "forget", "state"])
def test_whoever_stops_has_freed_the_place(engine, how):
    state = engine.open(TEXTS[0])
    writing = state.write([1, 2], FREE, max_tokens=400, allow_end=False)
    next(writing)
    if how == "close":
        writing.close()
        assert list(writing) == []
    elif how == "with":
        with writing:
            pass
    elif how == "state":
        state.close()
    else:
        del writing
        gc.collect()
    assert engine.scheduler.jobs == 0
    if how != "state":
        state.keep(0, tokens=1)  # what there was can be gone on with
        assert len(state.write([1], FREE, max_tokens=3, allow_end=False).result()[0].ids) == 3
    assert written(engine, TEXTS[1])


def test_a_state_that_was_closed_in_the_middle_leaves_nothing_behind(engine, model):
    with engine.open(TEXTS[0]) as state:
        writing = state.write([1, 2, 3], FREE, max_tokens=400, allow_end=False)
        next(writing)
        writing.close()
        (found,) = state.write([0], GREEDY, max_tokens=MANY, allow_end=False).result()
    assert found.ids == generated(model, engine.encode(TEXTS[0]))


def test_an_error_of_one_caller_is_the_callers_own(engine):
    alone = written(engine, TEXTS[1], sampling=GREEDY)[0].ids

    def broken(text):
        raise LookupError("of the caller")

    good, bad = engine.open(TEXTS[1]), engine.open(TEXTS[0])
    first, second = good.write([1], GREEDY, max_tokens=MANY), bad.write([1], FREE, broken)
    with pytest.raises(LookupError, match="of the caller"):
        second.result()
    assert first.result()[0].ids == alone
    assert bad.write([1], FREE, max_tokens=3, allow_end=False).result()[0].ended == "length"


def test_a_step_that_fails_for_one_goes_on_for_the_others(engine, monkeypatch):
    alone = written(engine, TEXTS[1], sampling=GREEDY)[0].ids
    poison, read = engine.encode(TEXTS[2])[:9], engine.network.read

    def failing(ids, positions, spans):
        if any(list(ids[i : i + 9]) == poison for i in range(len(ids))):
            raise torch.OutOfMemoryError("none left")
        return read(ids, positions, spans)

    monkeypatch.setattr(engine.network, "read", failing)
    good, bad = engine.open(TEXTS[1]), engine.open(TEXTS[2])
    first, second = good.write([1], GREEDY, max_tokens=MANY), bad.write([1], FREE)
    with pytest.raises(StoryError, match="not enough memory"):
        second.result()
    assert first.result()[0].ids == alone


def test_closing_wakes_whoever_waits(folder):
    engine = StoryEngine.load(folder, precision="float32")
    started = threading.Event()
    reasons = []

    def waits():
        with engine.open(TEXTS[0]) as state:
            try:
                for _ in state.write([1], FREE, max_tokens=450, allow_end=False, until=lambda text: started.set()):
                    pass
            except StoryError as error:
                reasons.append(str(error))

    thread = threading.Thread(target=waits)
    thread.start()
    started.wait()
    engine.close()
    thread.join()
    assert not reasons or "closed" in reasons[0]  # it may have been quicker
    with pytest.raises(StoryError, match="closed"):
        engine.open(TEXTS[0])


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(engine, monkeypatch):
    monkeypatch.setattr(story_scheduler, "IDLE_SECONDS", 0.0)
    first = written(engine, TEXTS[0], sampling=GREEDY)
    if (thread := engine.scheduler._thread) is not None:
        thread.join()
    assert written(engine, TEXTS[0], sampling=GREEDY) == first


def test_more_continuations_than_a_step_holds_take_turns(engine, monkeypatch):
    alone = [written(engine, text, seeds=[1, 2, 3], sampling=GREEDY) for text in TEXTS]
    monkeypatch.setattr(story_scheduler, "MOST_ROWS", 4)
    monkeypatch.setattr(story_scheduler, "PROMPT_ROWS", 1)
    states = [engine.open(text) for text in TEXTS]
    writings = [state.write([1, 2, 3], GREEDY, max_tokens=MANY) for state in states]
    assert [[one.ids for one in writing.result()] for writing in writings] == [[o.ids for o in one] for one in alone]


def test_requests_that_cannot_be_met_are_refused(engine):
    with pytest.raises(StoryError, match="empty"):
        engine.open("")
    with pytest.raises(StoryError, match="shorten"):
        engine.open("shoes " * 600)
    with engine.open(TEXTS[0]) as state:
        for wishes in ({"seeds": ()}, {"max_tokens": 0}):
            with pytest.raises(StoryError, match="At least one"):
                state.write(**wishes)
        with pytest.raises(StoryError, match="no continuation 0"):
            state.keep(0)
        with state.write([1], FREE, max_tokens=400, allow_end=False), pytest.raises(StoryError, match="written on"):
            state.write([1])
    text = "shoes"
    ids = engine.encode(text)
    with engine.open(text * ((engine.window - 4) // len(ids))) as state:
        (found,) = state.write([1], FREE, allow_end=False).result()
        assert found.ended == "length" and len(state._trunk.ids) + len(found.ids) == engine.window
        state.keep()
        with pytest.raises(StoryError, match="too long"):
            state.write([1])


# -- folders -----------------------------------------------------------------------------------------------------------
def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        StoryEngine.load(tmp_path)

    def changed(name, change):
        place = tmp_path / name
        shutil.copytree(folder, place)
        change(place)
        return place

    def config(**settings):
        def change(place):
            known = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps(known | settings))

        return change

    def cut(name, size):
        return lambda place: (place / name).write_bytes((place / name).read_bytes()[:size])

    for place, told in (
        (changed("foreign", config(model_type="bert")), "plain Llama"),
        (changed("biased", config(attention_bias=True)), "plain Llama"),
        (changed("scaled", config(rope_parameters={"rope_type": "yarn", "rope_theta": 1.0})), "plain Llama"),
        (changed("no-config", cut("config.json", 40)), "cannot be loaded"),
        (changed("cut", cut("model.safetensors", 9000)), "damaged"),
        (changed("deeper", config(num_hidden_layers=3)), "lacks"),
        (changed("no-tokenizer", lambda place: (place / "tokenizer.json").unlink()), "no tokenizer.json"),
        (changed("cut-tokenizer", cut("tokenizer.json", 90)), "damaged"),
        (changed("other-tokenizer", config(vocab_size=20)), "belong together"),
    ):
        with pytest.raises(ModelFolderError, match=told):
            StoryEngine.load(place, precision="float32")


def test_eight_bits_are_close_to_the_weights():
    weight = torch.randn(30, 64)
    whole, scale = quantized_rows(weight)
    assert whole.dtype == torch.int8 and int(whole.abs().max()) == 127
    error = (whole.float() * scale.float()[:, None] - weight).abs().amax(1)
    assert bool((error <= 0.51 * scale.float() + 0.005 * weight.abs().amax(1)).all())


def test_widths_that_the_kernel_does_not_take_are_computed_in_float32(tmp_path):
    place = save_tiny_storyteller(tmp_path / "narrow", hidden_size=48, head_dim=16, num_attention_heads=2)
    assert quickest_precision(json.loads((place / "config.json").read_text())) == "float32"
    assert StoryNetwork.load(place).precision == "float32"
