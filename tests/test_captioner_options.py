"""Every option of the captioner: its equation, training, beams, saving, and the folder's own code."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import ModelFolderError
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from tests.captioners import NO_DROPOUT, STEPS, WrittenOut, make_model, textbook_beam
from training.self_critical import SelfCriticalCaptioner, SelfCriticalOptions, sample_captions

OPTIONS = {
    "bahdanau": {},
    "dot": {"attention_type": "dot"},
    "multihead": {"attention_type": "multihead", "attention_heads": 2},
    "hard": {"attention_mode": "hard"},
    "hard-argmax": {"attention_mode": "hard", "hard_attention_inference": "argmax"},
    "hard-heads": {"attention_mode": "hard", "attention_type": "multihead", "attention_heads": 2},
    "zero-state": {"initial_state": "zero"},
    "no-gate": {"context_gate": False},
    "plain": {"output_type": "plain"},
    "plain-untied": {"output_type": "plain", "tie_word_embeddings": False},
    "untied": {"tie_word_embeddings": False},
    "bottleneck": {"output_bottleneck": 8},
    "bottleneck-untied": {"output_bottleneck": 8, "tie_word_embeddings": False},
    "bottleneck-plain": {"output_bottleneck": 8, "tie_word_embeddings": False, "output_type": "plain"},
    "adaptive": {"adaptive_cutoff": 9},
    "adaptive-bottleneck": {"adaptive_cutoff": 9, "output_bottleneck": 8},
    "frozen": {"freeze_embeddings": True},
    "frozen-adaptive": {"freeze_embeddings": True, "adaptive_cutoff": 9},
    "scheduled": {"scheduled_sampling": "linear", "scheduled_sampling_k": 2, "scheduled_sampling_floor": 0.4},
    "scheduled-hard-adaptive": {
        "scheduled_sampling": "exponential",
        "scheduled_sampling_k": 0.1,
        "attention_mode": "hard",
        "adaptive_cutoff": 9,
    },
}
each_option = pytest.mark.parametrize("option", OPTIONS)


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(1)
    return torch.randn(5, 4, 24)


@pytest.fixture(scope="module")
def labels():
    torch.manual_seed(5)
    labels = torch.randint(3, 23, (6, 7))
    for row, length in enumerate([3, 7, 5, 2, 7, 4]):
        labels[row, length:] = IGNORE_INDEX
    return labels


INDEX = torch.tensor([2, 0, 2, 4, 1, 1])


# -- the equations -----------------------------------------------------------------------------------------------------
@torch.no_grad()
@each_option
def test_scores_states_and_maps_are_the_papers_equations(features, option):
    model = make_model(**OPTIONS[option])
    ids = torch.tensor([[1, 5, 12, 22], [1, 0, 8, 9]])
    out = model(region_features=features[:2], decoder_input_ids=ids, output_attentions=True)
    for row in range(2):
        by_hand = WrittenOut(model, features[row])
        for t, word in enumerate(ids[row].tolist()):
            before, vector = (by_hand.h, by_hand.c), by_hand.word(word)
            alpha = by_hand.step(vector)
            if option == "hard-argmax":
                by_hand.h, by_hand.c = before
                by_hand.step(vector, alpha.argmax(1).tolist())
            torch.testing.assert_close(out.logits[row, t].log_softmax(0), by_hand.log_probs())
            torch.testing.assert_close(out.cross_attentions[0][row, 0, t], alpha.mean(0))
        torch.testing.assert_close(out.cache.h[row], by_hand.h)
        torch.testing.assert_close(out.cache.c[row], by_hand.c)


@torch.no_grad()
@each_option
def test_score_and_learning_from_samples_give_the_written_out_log_probabilities(features, option):
    model = make_model(**NO_DROPOUT, **OPTIONS[option])
    ids = torch.tensor([[1, 5, 12, 22, 2], [1, 9, 8, 2, 0]])
    log_probs, maps = model.score(ids, region_features=features[:2])
    assert maps.shape == (2, 4, 4)
    samples, words, captions = sample_captions(model, model.encoder(region_features=features[:2]), 3, 6)
    sequences = torch.cat([torch.ones(6, 1, dtype=torch.long), samples.masked_fill(samples == IGNORE_INDEX, 0)], 1)
    log_probs, _ = model.score(sequences, image_index=torch.arange(6) // 3, region_features=features[:2])
    torch.testing.assert_close(words.new_zeros(6).index_add(0, captions, words), log_probs.sum(1))


def test_adaptive_labels_are_smoothed_in_each_softmax(features, labels):
    model = make_model(**NO_DROPOUT, adaptive_cutoff=9, label_smoothing=0.2, attention_penalty=0.0).train()
    losses = []
    for row, image in enumerate(INDEX.tolist()):
        by_hand, word = WrittenOut(model, features[image]), 1
        for target in labels[row][labels[row] != IGNORE_INDEX].tolist():
            by_hand.step(by_hand.word(word))
            all_words = by_hand.log_probs()
            rare = all_words[9:].logsumexp(0)
            head, tail = torch.cat([all_words[:9], rare[None]]), all_words[9:] - rare
            loss = -0.8 * head[min(target, 9)] - 0.2 * head.mean()
            if target >= 9:
                loss = loss - 0.8 * tail[target - 9] - 0.2 * tail.mean()
            losses.append(loss)
            word = target
    loss = model(region_features=features, labels=labels, image_index=INDEX).loss
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize("attention", ["bahdanau", "dot", "multihead"])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_of_the_captioner_are_those_of_its_equations(attention, bf16):
    heads = {"attention_heads": 2} if attention == "multihead" else {}
    model = make_model(
        **NO_DROPOUT, **heads, attention_type=attention, label_smoothing=0.0, attention_penalty=0.6
    ).train()
    torch.manual_seed(1)
    features, index, labels = torch.randn(2, 4, 24), [1, 0, 1], torch.randint(3, 23, (3, 5))
    labels[0, 3:] = labels[2, 4:] = IGNORE_INDEX
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(region_features=features, labels=labels, image_index=torch.tensor(index)).loss
    losses, seen = [], []
    for row, image in enumerate(index):
        by_hand, word, maps = WrittenOut(model, features[image]), 1, []
        for target in labels[row][labels[row] != IGNORE_INDEX].tolist():
            maps.append(by_hand.step(by_hand.word(word)).mean(0))
            losses.append(-by_hand.log_probs()[target])
            word = target
        seen.append(torch.stack(maps).sum(0))
    expected = torch.stack(losses).mean() + 0.6 * (1 - torch.stack(seen)).square().mean()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (torch.autograd.grad(way, list(trained.values())) for way in (loss, expected))
    if not bf16:
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    for name, one, other in zip(trained, ours, theirs, strict=True):
        assert one.dtype == torch.float32, name
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98, name


# -- hard attention ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("heads", [1, 2])
def test_hard_attention_is_reinforce_with_baseline_and_entropy(features, labels, heads, monkeypatch):
    """Loss and all gradients against the estimator written out, for the regions that were drawn."""
    kind = {"attention_type": "multihead", "attention_heads": 2} if heads == 2 else {}
    weights = {"hard_attention_reward": 0.7, "hard_attention_entropy": 0.3, "attention_penalty": 0.5}
    model = make_model(**NO_DROPOUT, **kind, **weights, attention_mode="hard", label_smoothing=0.1).train()
    model.baseline.value.fill_(-2.0)
    draws, draw = [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *a, **k: draws.append(draw(*a, **k)) or draws[-1])
    torch.manual_seed(4)
    out = model(region_features=features, labels=labels, image_index=INDEX)
    loss = out.loss
    torch.manual_seed(4)
    drew = torch.rand(6) >= 0.5  # the first thing asked of the generator
    assert 0 < drew.sum() < 6

    lengths = (labels != IGNORE_INDEX).sum(1)
    order = lengths.sort(descending=True, stable=True).indices.tolist()
    cross_entropy, gain, seen, rewards = [], [], [], []
    for place, row in enumerate(order):
        by_hand, word = WrittenOut(model, features[INDEX[row]]), 1
        nll, log_alpha, entropy, maps = [], [], [], []
        for t in range(lengths[row]):
            regions = draws[t].view(-1, heads)[place].tolist() if drew[place] else None
            alpha = by_hand.step(by_hand.word(word), regions)
            word = int(labels[row, t])
            all_words = by_hand.log_probs()
            nll.append(-all_words[word])
            cross_entropy.append(-0.9 * all_words[word] - 0.1 * all_words.mean())
            log_alpha.append(sum(alpha[n, p].log() for n, p in enumerate(regions)) if regions else 0.0)
            entropy.append(-(alpha * alpha.log()).sum())
            maps.append(alpha.mean(0))
        reward = -torch.stack(nll).mean().detach()
        gain += [0.7 * (reward + 2.0) * a + 0.3 * e for a, e in zip(log_alpha, entropy, strict=True)]
        seen.append(torch.stack(maps).sum(0))
        rewards += [reward] * bool(drew[place])
    expected = torch.stack(cross_entropy).mean() - torch.stack(gain).mean()
    expected = expected + 0.5 * (1 - torch.stack(seen)).square().mean()
    torch.testing.assert_close(loss, expected)
    trained = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained, allow_unused=True)
    padded = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, theirs, strict=True)]
    torch.testing.assert_close(ours, tuple(padded), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model.baseline.value, 0.9 * torch.tensor(-2.0) + 0.1 * torch.stack(rewards).mean())
    assert out.report["attention_baseline"] == -2 and -30 < out.report["attention_reward"] < 0


def test_regions_are_drawn_as_alpha_says_and_by_the_share_of_captions():
    from modeling.captioner_attention import DrawnRegions

    torch.manual_seed(0)
    alpha = torch.tensor([0.1, 0.2, 0.7]).expand(4000, 1, 3)
    look = DrawnRegions(4000, 0.25, torch.device("cpu"))
    weights = look(alpha)
    torch.testing.assert_close(look.drawn.float().mean(), torch.tensor(0.75), atol=0.03, rtol=0)
    drawn = weights[look.drawn, 0]
    assert drawn.max(1).values.eq(1).all() and drawn.sum(1).eq(1).all()
    torch.testing.assert_close(drawn.mean(0), alpha[0, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(weights[~look.drawn], alpha[~look.drawn])
    torch.testing.assert_close(look.log_probs[0][look.drawn], (drawn @ alpha[0, 0]).log())
    assert not look.log_probs[0][~look.drawn].any()


def test_baseline_is_kept_with_the_weights_and_starts_at_zero_on_soft_ones(tmp_path, features, labels):
    model = make_model(attention_mode="hard").train()
    for _ in range(3):
        model(region_features=features, labels=labels, image_index=INDEX)
    assert model.baseline.value < -0.1
    model.save_pretrained(tmp_path / "hard")
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "hard")
    assert torch.equal(again.baseline.value, model.baseline.value)
    make_model().save_pretrained(tmp_path / "soft")
    new = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "soft", attention_mode="hard")
    assert new.baseline.value == 0


# -- every option ------------------------------------------------------------------------------------------------------
@each_option
def test_training_is_finite_and_reaches_everything_that_is_trained(features, labels, option):
    model = make_model(**OPTIONS[option]).train()
    frozen = {"embedding.weight", "words.head.weight", "words.tail.weight", "words.tail_projection.weight"}
    for _ in range(3):
        model.zero_grad()
        loss = model(region_features=features, labels=labels, image_index=INDEX).loss
        loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.backbone.") or (model.config.freeze_embeddings and name in frozen):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


@each_option
def test_beam_search_is_the_textbooks(features, option):
    model = make_model(**OPTIONS[option])
    settings = {"num_beams": 3, "do_sample": False, "max_new_tokens": STEPS}
    out = model.generate(region_features=features, return_dict_in_generate=True, output_scores=True, **settings)
    for row in range(2):
        ids, score = textbook_beam(model, features[row : row + 1], 3, STEPS)
        assert out.sequences[row, : len(ids)].tolist() == ids
        assert out.sequences_scores[row].item() == pytest.approx(score, abs=1e-4)


@each_option
def test_sampling_follows_the_models_own_probabilities(features, option):
    """Drawn as for self-critical training: from the whole distribution, with its log-probability found again."""
    model = make_model(**OPTIONS[option])
    torch.manual_seed(7)
    out = model.generate(
        region_features=features,
        do_sample=True,
        num_beams=1,
        top_k=0,
        max_new_tokens=STEPS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    log_probs, _ = model.score(out.sequences, region_features=features)
    chosen = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, out.sequences[:, 1:, None]).squeeze(-1)
    real = log_probs != 0
    torch.testing.assert_close(log_probs[real], chosen[real])


@each_option
def test_self_critical_training_samples_and_learns(features, option):
    """Its own sampling loop agrees with `generate`, and its loss reaches the words and the attention."""
    model = make_model(**OPTIONS[option])
    greedy, _, _ = sample_captions(model, model.encoder(region_features=features), 1, STEPS, greedy=True)
    ids = model.generate(region_features=features, do_sample=False, num_beams=1, max_new_tokens=STEPS)[:, 1:]
    assert torch.equal(greedy.masked_fill(greedy == IGNORE_INDEX, 0), ids)
    options = SelfCriticalOptions(samples=2, max_words=STEPS, baseline="mean")
    wrapped = SelfCriticalCaptioner(model, lambda images, captions: captions.float().sum(1), options, [0, 1, 3])
    torch.manual_seed(0)
    wrapped.train()(rows=torch.arange(5), region_features=features).loss.backward()
    gradient = model.decoder.state_projection.weight.grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@each_option
def test_captions_without_a_photograph_see_nothing(features, labels, option):
    if "hard" in option:
        pytest.skip("the loss draws regions")
    model = make_model(**OPTIONS[option]).train()
    encoded = model.encoder(region_features=features)
    nothing = {name: torch.cat([part, torch.zeros_like(part[:1])]) for name, part in encoded.items()}
    blind = torch.tensor([0, -1, 2, -1, 1, 0])
    seen = blind.clone().masked_fill_(blind < 0, len(features))
    if model.training_steps is not None:
        model.training_steps.count.zero_()
    torch.manual_seed(0)
    loss = model(encoder_outputs=encoded, labels=labels, image_index=blind).loss
    if model.training_steps is not None:
        model.training_steps.count.zero_()
    torch.manual_seed(0)
    torch.testing.assert_close(
        loss, model(encoder_outputs=type(encoded)(**nothing), labels=labels, image_index=seen).loss
    )


@each_option
def test_save_and_load_change_nothing(tmp_path, features, labels, option):
    model = make_model(**OPTIONS[option])
    model.train()(region_features=features, labels=labels, image_index=INDEX)  # baseline and step count move
    model.eval().generation_config.update(num_beams=3, max_new_tokens=STEPS)
    model.save_pretrained(tmp_path)
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.generate(region_features=features), again.generate(region_features=features))
    for name, parameter in again.named_parameters():
        assert parameter.requires_grad == dict(model.named_parameters())[name].requires_grad, name
    if again.config.adaptive_cutoff is None:
        assert (again.vocabulary.weight is again.embedding.weight) == again.config.tie_word_embeddings


def test_bottleneck_narrows_the_vocabulary_layer():
    tied, untied = make_model(output_bottleneck=8), make_model(output_bottleneck=8, tie_word_embeddings=False)
    assert tied.vocabulary.weight.shape == untied.vocabulary.weight.shape == tied.embedding.weight.shape == (23, 8)
    assert untied.embedding.weight.shape == (23, 12) and tied.expansion.weight.shape == (12, 8)
    plain = make_model(output_type="plain", tie_word_embeddings=False)
    assert plain.vocabulary.weight.shape == (23, 14) and plain.decoder.output_projection is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_type": "telepathy"}, "bahdanau, dot, multihead"),
        ({"attention_mode": "loud"}, "soft, hard"),
        ({"attention_heads": 2}, "multihead"),
        ({"attention_type": "multihead", "attention_heads": 3, "attention_dim": 10}, "3 does not divide 10"),
        ({"output_type": "shallow"}, "deep, plain"),
        ({"adaptive_cutoff": 5, "tie_word_embeddings": False}, "tied"),
        ({"output_bottleneck": 0}, "output_bottleneck"),
        ({"scheduled_sampling": "sometimes"}, "inverse_sigmoid"),
        ({"scheduled_sampling": "inverse_sigmoid", "scheduled_sampling_k": 1}, "above 1"),
        ({"scheduled_sampling_floor": 1.5}, "probability"),
    ],
)
def test_options_that_do_not_exist_or_fit_are_refused(changes, message):
    with pytest.raises(ModelFolderError, match=message):
        PictaleCaptionerConfig(**changes)


def test_folders_load_without_this_repository(tmp_path, features):
    """Fresh process, folder's own code: the options that add a module of their own."""
    names = ["hard-heads", "adaptive-bottleneck", "scheduled", "plain-untied"]
    expected = []
    for name in names:
        model = make_model(**OPTIONS[name])
        model.generation_config.update(num_beams=3, max_new_tokens=STEPS)
        model.save_pretrained(tmp_path / name)
        expected.append(model.generate(region_features=features).tolist())
    script = f"""
        import json, torch
        from transformers import AutoModelForImageTextToText
        torch.manual_seed(1)
        features, found = torch.randn(5, 4, 24), []
        for name in {names!r}:
            model = AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r} + "/" + name, trust_remote_code=True)
            assert "transformers_modules" in type(model).__module__
            found.append(model.generate(region_features=features).tolist())
        print(json.dumps(found))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": ""},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == expected
