"""The captioner by its properties: equations, generate() against a textbook search, batches, persistence."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedTokenizerFast, set_seed

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import ModelFolderError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from tests.captioners import NO_DROPOUT, STEPS, make_model, textbook_beam

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(1)
    return torch.randn(5, 4, 24)


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(2)
    return torch.randn(3, 3, 64, 64)


# -- the equations -----------------------------------------------------------------------------------------------------
def test_training_loss_is_cross_entropy_plus_penalty(features):
    """Packed rows, several captions an image, in any order: the same number as the padded computation."""
    model = make_model(**NO_DROPOUT, label_smoothing=0.1, attention_penalty=0.7)
    index = torch.tensor([2, 0, 2, 4, 1, 1])
    labels = torch.randint(4, 23, (6, 7))
    for row, length in enumerate([3, 7, 5, 2, 7, 4]):
        labels[row, length:] = IGNORE_INDEX
    out = model.eval()(region_features=features, labels=labels, image_index=index, output_attentions=True)
    cross_entropy = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=0.1
    )
    seen = (out.cross_attentions[0][:, 0] * (labels != IGNORE_INDEX)[:, :, None]).sum(1)
    expected = cross_entropy + 0.7 * (1 - seen).square().mean()
    trained = model.train()(region_features=features, labels=labels, image_index=index)
    torch.testing.assert_close(trained.loss, expected)


def test_gradients_reach_everything_that_is_trained(features):
    model = make_model().train()
    labels = torch.randint(4, 23, (5, 6))
    model(region_features=features, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.backbone."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_frozen_backbone_does_not_drift(pixels):
    model = make_model().train()
    before = {k: v.clone() for k, v in model.encoder.backbone.state_dict().items()}
    model(pixel_values=pixels, labels=torch.randint(4, 23, (3, 6))).loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.backbone.state_dict().items())


def test_trained_backbone_gets_gradients(pixels):
    model = make_model(freeze_backbone=False).train()
    model(pixel_values=pixels, labels=torch.randint(4, 23, (3, 6))).loss.backward()
    assert model.encoder.backbone.stem.conv.weight.grad.abs().sum() > 0


# -- generate ----------------------------------------------------------------------------------------------------------
def test_greedy_is_beam_one_and_a_loop_by_hand(model, features):
    greedy = model.generate(region_features=features, do_sample=False, num_beams=1, max_new_tokens=STEPS)
    memory, state = model.encoder(region_features=features), None
    ids = torch.full((5, 1), model.config.decoder_start_token_id)
    ended = torch.zeros(5, dtype=torch.bool)
    while ids.shape[1] <= STEPS and not ended.all():
        out = model(encoder_outputs=memory, decoder_input_ids=ids[:, -1:], cache=state, use_cache=True)
        state = out.cache
        word = out.logits[:, -1].argmax(-1).masked_fill(ended, model.config.pad_token_id)
        ids, ended = torch.cat([ids, word[:, None]], 1), ended | (word == model.config.eos_token_id)
    assert torch.equal(greedy, ids)


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_beam_search_is_the_textbooks(model, features, beams):
    found = model.generate(
        region_features=features,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for row in range(len(features)):
        ids, score = textbook_beam(model, features[row : row + 1], beams, STEPS)
        assert found.sequences[row, : len(ids)].tolist() == ids
        after = set(found.sequences[row, len(ids) :].tolist())  # generate() fills beams up with the end id
        assert after <= {model.config.pad_token_id, model.config.eos_token_id}
        assert found.sequences_scores[row].item() == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_state_changes_nothing_but_time(model, features, beams):
    settings = {"num_beams": beams, "do_sample": False, "max_new_tokens": STEPS}
    with_state = model.generate(region_features=features, **settings)
    assert torch.equal(with_state, model.generate(region_features=features, use_cache=False, **settings))


def test_batch_equals_singles(model, pixels):
    settings = {"num_beams": 3, "do_sample": False, "max_new_tokens": STEPS}
    together = model.generate(pixel_values=pixels, **settings)
    for row, single in enumerate(model.generate(pixel_values=p[None], **settings) for p in pixels):
        assert together[row, : single.shape[1]].tolist() == single[0].tolist()


def test_cached_features_equal_pixels(model, pixels):
    settings = {"num_beams": 3, "do_sample": False, "max_new_tokens": STEPS}
    features = model.encoder.extract(pixels)
    assert torch.equal(
        model.generate(pixel_values=pixels, **settings), model.generate(region_features=features, **settings)
    )


def test_sampling_follows_the_seed_and_the_beams_come_back(model, features):
    settings = {"do_sample": True, "num_beams": 1, "temperature": 1.3, "top_k": 0, "max_new_tokens": STEPS}
    drawn = []
    for seed in (1, 1, 2):
        set_seed(seed)
        drawn.append(model.generate(region_features=features, **settings).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    several = model.generate(region_features=features, num_beams=4, num_return_sequences=3, max_new_tokens=STEPS)
    assert several.shape[0] == 15


def test_barred_words_are_never_written(model, features):
    banned = [0, 1, 3, *range(10, 23)]
    set_seed(0)
    ids = model.generate(
        region_features=features, do_sample=True, num_beams=1, suppress_tokens=banned, max_new_tokens=STEPS
    )
    assert not set(ids[:, 1:].flatten().tolist()) & set(banned[1:])


def test_attention_of_generate_and_score_agree_and_sum_to_one(model, features):
    out = model.generate(
        region_features=features,
        do_sample=False,
        num_beams=1,
        max_new_tokens=STEPS,
        output_attentions=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    stepwise = torch.cat([step[0].squeeze(1) for step in out.cross_attentions], 1)  # [R, T, P]
    log_probs, attention = model.score(out.sequences, region_features=features)
    torch.testing.assert_close(attention, stepwise)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
    chosen = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, out.sequences[:, 1:, None]).squeeze(-1)
    real = log_probs != 0
    torch.testing.assert_close(log_probs[real], chosen[real])
    assert model.grid_size[0] * model.grid_size[1] == attention.shape[-1]


def test_score_ignores_padding_and_repeats_images(model, features):
    ids = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 5, 6, 2, 9, 9], [1, 7, 8, 9, 10, 2]])
    log_probs, _ = model.score(ids, region_features=features[:2], image_index=torch.tensor([1, 1, 0]))
    # not bit for bit: how sums are rounded depends on a row's place in the batch with some processors
    torch.testing.assert_close(log_probs[0], log_probs[1], rtol=1e-6, atol=1e-6)
    assert (log_probs[0, 3:] == 0).all()
    single, _ = model.score(ids[2:], region_features=features[:1])
    torch.testing.assert_close(log_probs[2:], single)


def test_different_pictures_get_different_captions():
    model = make_model()
    torch.manual_seed(4)
    ids = model.generate(region_features=3 * torch.randn(8, 4, 24), num_beams=3, max_new_tokens=STEPS)
    assert len({tuple(row) for row in ids.tolist()}) > 4


# -- inference copy, saving, loading -----------------------------------------------------------------------------------
def test_prepared_model_says_the_same_and_saves_the_same(tmp_path, pixels):
    plain, prepared = make_model(), make_model().prepare_for_inference()
    with torch.inference_mode():
        torch.testing.assert_close(
            prepared.encoder.extract(pixels), plain.encoder.extract(pixels), atol=1e-4, rtol=1e-4
        )
    assert prepared.state_dict().keys() == plain.state_dict().keys()
    prepared.save_pretrained(tmp_path)
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in again.state_dict().items())
    prepared.train()
    assert not prepared.encoder._fused


@pytest.mark.parametrize(
    "changes", [{}, {"attention_type": "dot"}, {"tie_word_embeddings": False}, {"initial_state": "zero"}]
)
def test_save_and_load_change_nothing(tmp_path, pixels, changes):
    model = make_model(**changes)
    model.generation_config.update(num_beams=3, suppress_tokens=[3], max_new_tokens=STEPS)
    model.save_pretrained(tmp_path)
    again = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(model.generate(pixel_values=pixels), again.generate(pixel_values=pixels))
    assert (again.vocabulary.weight is again.embedding.weight) == again.config.tie_word_embeddings


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(ModelFolderError, match="bahdanau"):
        PictaleCaptionerConfig(attention_type="telepathy")
    with pytest.raises(ModelFolderError, match="mean"):
        PictaleCaptionerConfig(initial_state="happy")


def test_neither_words_nor_labels_is_an_error(model, features):
    with pytest.raises(ValueError, match="labels"):
        model(region_features=features)


# -- the image processor -----------------------------------------------------------------------------------------------
def test_processor_squashes_and_normalises():
    wide = Image.new("RGB", (90, 30))
    wide.paste((255, 127, 0), (0, 0, 45, 30))
    pixels = PictaleImageProcessor()(wide, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    expected = torch.tensor([(255 - 127) / 128, 0.0, -127 / 128])
    torch.testing.assert_close(pixels[0, :, 112, 10], expected, atol=1e-5, rtol=0)  # nothing is cropped at the edge
    torch.testing.assert_close(pixels[0, :, 112, 213], torch.full((3,), -127 / 128), atol=1e-5, rtol=0)


def test_processor_takes_grey_pictures_and_batches_of_any_sizes():
    pictures = [Image.new("L", (40, 50), 127).convert("RGB"), Image.new("RGB", (300, 20))]
    assert PictaleImageProcessor()(pictures, return_tensors="pt").pixel_values.shape == (2, 3, 224, 224)


def test_processor_round_trip_through_auto(tmp_path):
    processor = PictaleImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"]
    again = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    first, second = (p(picture, return_tensors="pt").pixel_values for p in (processor, again))
    assert second.shape == (1, 3, 64, 64)
    assert torch.equal(first, second)


def test_embedded_weights_see_what_is_there():
    folder, examples = (
        REPOSITORY / "hub_configs" / name for name in ("captioner-flickr8k", "pictale-default/examples")
    )
    if not (folder / "model.safetensors").exists():
        pytest.skip("the trained weights are not here")
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder).prepare_for_inference()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    there = {"dog": "dog", "horses": "riding", "kites": "kites", "skier": "snow", "ski-jump": "snow"}
    photos = [Image.open(examples / f"{name}.jpg") for name in there]
    pixels = PictaleImageProcessor.from_pretrained(folder)(photos, return_tensors="pt").pixel_values
    captions = tokenizer.batch_decode(model.generate(pixel_values=pixels), skip_special_tokens=True)
    assert all(word in caption for word, caption in zip(there.values(), captions, strict=True)), captions


def test_folder_loads_without_this_repository(tmp_path, pixels):
    """A fresh process that cannot import `modeling` loads model and processor from the folder's own code."""
    model = make_model()
    model.generation_config.update(num_beams=3, max_new_tokens=STEPS)
    folder = tmp_path / "captioner"
    model.save_pretrained(folder)
    PictaleImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    script = f"""
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText
        model = AutoModelForImageTextToText.from_pretrained({str(folder)!r}, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
        assert type(processor).__name__ == "PictaleImageProcessor"
        torch.manual_seed(2)
        print(model.generate(pixel_values=torch.randn(3, 3, 64, 64)).tolist())
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": ""},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == model.generate(pixel_values=pixels).tolist()
