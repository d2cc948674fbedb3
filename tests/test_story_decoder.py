"""The story decoder: conditions matter, generate() is right, nothing is lost in saving."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from modeling import ModelFolderError, PictaleStoryDecoderForConditionalGeneration
from modeling.modeling_story_decoder import StoryConditionOutput
from tests.tiny import tiny_decoder, tiny_tokenizer
from training.export_weights import export_weights

LENGTH = dict(max_new_tokens=7, min_new_tokens=1)


@pytest.fixture(params=[(1, 0), (2, 0), (1, 4)], ids=["one layer", "two layers", "styled"])
def model(request):
    layers, style_size = request.param
    return tiny_decoder(layers=layers, style_size=style_size)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    thought = torch.nn.functional.normalize(torch.randn(3, 24), dim=-1)
    previous = torch.nn.functional.normalize(torch.randn(3, 24), dim=-1)
    return {
        "thought": thought,
        "previous_thought": previous,
        "content_ids": torch.tensor([[5, 9], [8, 0], [0, 0]]),
        "style": torch.randn(3, 24),
    }


def next_word(model, inputs):
    return model(**inputs, decoder_input_ids=torch.tensor([[1, 6]] * 3)).logits[:, -1]


def test_every_condition_changes_what_comes_next(model, inputs):
    plain = next_word(model, inputs)
    torch.testing.assert_close(plain.exp().sum(-1), torch.ones(3))
    for name in ("thought", "previous_thought"):
        assert not torch.allclose(plain, next_word(model, {**inputs, name: -inputs[name]}))
    other = next_word(model, {**inputs, "content_ids": torch.tensor([[5, 10], [7, 0], [0, 0]])})
    assert not torch.allclose(plain[:2], other[:2])
    torch.testing.assert_close(plain[2], other[2])


def test_content_padding_and_order_change_nothing(model, inputs):
    plain = next_word(model, inputs)
    padded = next_word(model, {**inputs, "content_ids": torch.tensor([[0, 9, 5, 0], [8, 0, 0, 0], [0, 0, 0, 0]])})
    torch.testing.assert_close(plain, padded, rtol=0, atol=1e-5)


def test_batch_equals_singles(model, inputs):
    together = next_word(model, inputs)
    for i in range(3):
        alone = {k: v[i : i + 1] for k, v in inputs.items()}
        out = model(**alone, decoder_input_ids=torch.tensor([[1, 6]])).logits[0, -1]
        torch.testing.assert_close(together[i], out, rtol=0, atol=1e-5)


def test_a_step_for_many_is_the_forward_pass_of_each(model, inputs):
    """With nothing before it and with a state, three conditions and four passages under each."""
    model.eval()
    conditions = model.conditions(**inputs)
    torch.manual_seed(2)
    ids, h = torch.randint(4, 20, (3, 5, 4)), None
    for t in range(5):
        logits, h = model.step(conditions, ids[:, t], h)
        for g in range(3):
            parts = (part[g : g + 1].expand(4, *part.shape[1:]) for part in conditions.to_tuple())
            whole = model(encoder_outputs=StoryConditionOutput(*parts), decoder_input_ids=ids[g, : t + 1].t())
            torch.testing.assert_close(logits[g], whole.logits[:, -1], rtol=0, atol=1e-5)
            torch.testing.assert_close(h[:, g], whole.cache.h, rtol=0, atol=1e-5)


def test_thoughts_may_change_from_sentence_to_sentence(model, inputs):
    """In one pass, each word told by its sentence's thought, as sentence by sentence with the state carried on."""
    model.eval()
    torch.manual_seed(3)
    thoughts = torch.nn.functional.normalize(torch.randn(3, 2, 24), dim=-1)
    ids = torch.randint(4, 20, (3, 7))
    owner = torch.tensor([[0, 0, 0, 0, 1, 1, 1]]).expand(3, -1)
    told = {name: value for name, value in inputs.items() if name != "thought"}
    whole = model(thought=thoughts, sentence_ids=owner, decoder_input_ids=ids, **told).logits
    first = model(thought=thoughts[:, 0], decoder_input_ids=ids[:, :4], use_cache=True, **told)
    second = model(thought=thoughts[:, 1], decoder_input_ids=ids[:, 4:], cache=first.cache, **told)
    torch.testing.assert_close(whole, torch.cat([first.logits, second.logits], 1), rtol=0, atol=1e-5)
    one = model(thought=thoughts[:, :1], sentence_ids=owner * 0, decoder_input_ids=ids, **told).logits
    plain = model(thought=thoughts[:, 0], decoder_input_ids=ids, **told).logits
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-5)


def test_a_beginning_has_no_passage_before(model, inputs):
    without = {k: v for k, v in inputs.items() if k != "previous_thought"}
    zero = {**inputs, "previous_thought": torch.zeros(3, 24)}
    torch.testing.assert_close(next_word(model, without), next_word(model, zero))


def test_a_style_is_read_as_it_lies_from_the_middle_of_styles(inputs):
    model = tiny_decoder(style_size=4)
    reader = model.conditions.style
    styles = torch.randn(6, 24) * 0.01 + 1
    reader.measure(styles)
    torch.testing.assert_close((styles - reader.center).mul(reader.scale).std(), torch.tensor(1.0), rtol=1e-3, atol=0)
    expected = (styles - styles.mean(0)) * reader.scale @ reader.narrow.weight.T @ reader.widen.weight.T
    torch.testing.assert_close(reader(styles), expected)
    assert not reader(torch.zeros(2, 24)).any()  # no style, not the style 0

    def conditions(**told):
        return model.conditions(inputs["thought"], **told).last_hidden_state

    plain, style = conditions(), styles[:3]
    assert not torch.allclose(conditions(style=style), plain)
    for nothing in ({"style": torch.zeros(3, 24)}, {"style": style, "strength": 0.0}, {"style": reader.center}):
        torch.testing.assert_close(
            conditions(**{k: v.expand(3, -1) if k == "style" else v for k, v in nothing.items()}), plain
        )
    twice = conditions(style=style, strength=2.0) - plain
    torch.testing.assert_close(twice, 2 * (conditions(style=style) - plain))


def test_greedy_equals_stepping_by_hand(model, inputs):
    out = model.generate(**inputs, do_sample=False, **LENGTH)
    ids = torch.ones(3, 1, dtype=torch.long)
    done = torch.zeros(3, dtype=torch.bool)
    for step in range(7):
        log_probs = model(**inputs, decoder_input_ids=ids, use_cache=False).logits[:, -1]
        log_probs[:, [0, 1, 3]] = -torch.inf
        if step == 0:
            log_probs[:, 2] = -torch.inf
        chosen = log_probs.argmax(-1).masked_fill(done, 0)
        ids = torch.cat([ids, chosen[:, None]], 1)
        done |= chosen == 2
        if done.all():
            break
    assert torch.equal(out, ids)
    assert torch.equal(out, model.generate(**inputs, do_sample=False, num_beams=1, use_cache=False, **LENGTH))


def test_beam_search_keeps_the_state_with_its_beam(model, inputs):
    cached = model.generate(**inputs, num_beams=4, do_sample=False, **LENGTH)
    assert torch.equal(cached, model.generate(**inputs, num_beams=4, do_sample=False, use_cache=False, **LENGTH))


def test_barred_words_are_never_written(model, inputs):
    torch.manual_seed(0)
    out = model.generate(**inputs, do_sample=True, temperature=5.0, top_k=0, num_return_sequences=20, max_new_tokens=15)
    assert not torch.isin(out[:, 1:], torch.tensor([1, 3])).any()


def test_score_is_the_mean_log_probability(model, inputs):
    sequences = torch.tensor([[1, 6, 7, 2, 0, 0], [1, 9, 9, 9, 9, 2], [1, 5, 2, 0, 0, 0]])
    scores = model.score(model.conditions(**inputs), sequences)
    for i, row in enumerate(sequences):
        row = row[row != 0]
        alone = {k: v[i : i + 1] for k, v in inputs.items()}
        log_probs = model(**alone, decoder_input_ids=row[None, :-1]).logits[0]
        torch.testing.assert_close(scores[i], log_probs.gather(1, row[1:, None]).mean(), rtol=0, atol=1e-5)


def test_loss_ignores_what_is_not_a_target(model, inputs):
    labels = torch.tensor([[6, 7, 2], [6, 7, 2], [6, 7, 2]])
    longer = torch.nn.functional.pad(labels, (0, 2), value=-100)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, model(**inputs, labels=longer).loss)


def test_save_and_load_write_the_same(model, inputs, tmp_path):
    expected = model.generate(**inputs, num_beams=3, do_sample=False, **LENGTH)
    model.save_pretrained(tmp_path)
    for again in (
        PictaleStoryDecoderForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path),
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(again.eval().generate(**inputs, num_beams=3, do_sample=False, **LENGTH), expected)


def test_a_model_with_fewer_words_says_the_same_of_those_it_has(tmp_path):
    model, tokenizer = tiny_decoder(), tiny_tokenizer()
    size, kept = len(tokenizer), len(tokenizer) - 5
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "whole")
    export_weights(tmp_path / "run", tmp_path / "fewer", words=kept)
    small = PreTrainedTokenizerFast.from_pretrained(tmp_path / "fewer")
    assert len(small) == kept and small.get_vocab() == {w: i for w, i in tokenizer.get_vocab().items() if i < kept}
    assert small.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(size - 1)) == small.unk_token_id
    before, after = (
        PictaleStoryDecoderForConditionalGeneration.from_pretrained(tmp_path / name).eval()
        for name in ("whole", "fewer")
    )
    ids, thought = torch.randint(4, kept, (3, 6)), torch.randn(3, 24)
    old, new = (m(thought=thought, decoder_input_ids=ids).logits for m in (before, after))
    assert new.shape[-1] == kept and old.shape[-1] == size
    cutoff = before.config.adaptive_cutoff
    torch.testing.assert_close(new[..., :cutoff], old[..., :cutoff])
    left = old[..., cutoff:kept]  # the rare share what all rare had
    expected = left - left.logsumexp(-1, keepdim=True) + old[..., cutoff:].logsumexp(-1, keepdim=True)
    torch.testing.assert_close(new[..., cutoff:], expected, rtol=0, atol=1e-5)
    for words in (cutoff, size + 1, 0):
        with pytest.raises(ModelFolderError, match="--words takes a number"):
            export_weights(tmp_path / "run", tmp_path / "none", words=words)
    assert not (tmp_path / "none").exists()
