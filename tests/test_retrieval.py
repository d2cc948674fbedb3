"""The pipeline sees by memory: nearest sentences, captions from the bank, photos found by a sentence."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from modeling import (
    CaptionBank,
    ImageError,
    ModelFolderError,
    PictaleError,
    PictaleJointEmbedding,
    PictaleJointEmbeddingConfig,
    Story,
    StoryOptions,
    StoryPipeline,
)
from modeling.__main__ import main
from modeling.errors import TextError
from modeling.fingerprints import backbone_fingerprint
from modeling.photo_search import PhotoIndex
from modeling.reranking import Proposal, Wish
from modeling.text import split_sentences
from tests.tiny import save_tiny_pipeline, tiny_captioner, tiny_embedding, tiny_pipeline
from training.tiny_photos import COLOURS, SHAPES, draw

SENTENCES = ["A dog runs.", "Two cats sleep.", "The old lady said so.", "A red house.", "Night on the beach."]


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_embedding(tiny_embedding(pipe.captioner))
    pipe.use_sentences(SENTENCES)
    return pipe


@pytest.fixture
def photos():
    return [Image.open(io.BytesIO(draw(c, s))) for c, s in (("red", "circle"), ("blue", "square"))]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    (place / "below" / ".hidden").mkdir(parents=True)
    for i, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        name = f"{colour}-{shape}.png"
        (place / ("below" if i % 2 else ".") / name).write_bytes(draw(colour, shape))
    (place / "broken.jpg").write_bytes(b"not a photo")
    (place / "notes.txt").write_text("no photo")
    (place / "below" / ".hidden" / "secret.png").write_bytes(draw("red", "square"))
    return place


def counted(pipe, monkeypatch):
    """How many photos the backbone looks at from now on."""
    looked, extract = [], pipe.captioner.encoder.extract
    monkeypatch.setattr(pipe.captioner.encoder, "extract", lambda pixels: looked.append(len(pixels)) or extract(pixels))
    pipe._seen_by = None
    return looked


def test_nearest_sentences_are_those_of_the_vectors(pipe, photos):
    found = pipe.nearest_sentences(photos, k=3)
    vectors = pipe.embedding.embed_images(
        pixel_values=pipe.image_processor([p.convert("RGB") for p in photos], return_tensors="pt").pixel_values
    )
    scores = vectors @ pipe.embedding.embed_texts(SENTENCES).T
    for row, near in zip(scores, found, strict=True):
        assert [n.index for n in near] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([n.similarity for n in near], np.sort(row)[::-1][:3], atol=1e-5)
    np.testing.assert_allclose(pipe.similarities(photos, SENTENCES), scores, atol=1e-5)
    assert len(pipe.nearest_sentences(photos[0], k=2)) == 1 and pipe.can_retrieve


def test_a_photo_is_looked_at_once(pipe, photos, monkeypatch):
    looked = counted(pipe, monkeypatch)
    pipe.caption(photos)
    pipe.nearest_sentences(photos[1])
    pipe.nearest_sentences([photos[0], photos[0], photos[1]])
    pipe(photos[0], captions="both", seed=1)
    assert looked == [2]
    pipe.nearest_sentences([Image.effect_noise((40, 40), 90).convert("RGB"), photos[0]])
    assert looked == [2, 1]


def test_kept_features_change_no_caption(pipe, photos):
    alone = [pipe.caption(photo) for photo in photos]
    pipe._seen_by = None
    both = pipe.caption(photos)
    for [one], other in zip(alone, both, strict=True):
        assert [c.text for c in one] == [c.text for c in other]


def test_captions_from_the_bank_tell_the_story(pipe, photos):
    written = pipe(photos[0], seed=1, captions="generate")
    remembered = pipe(photos[0], seed=1, captions="retrieve", nearest_sentences=2)
    both = pipe(photos[0], seed=1, nearest_sentences=2)  # unless asked for otherwise
    assert [c.text for c in remembered.captions] == [n.text for n in pipe.nearest_sentences(photos[0], 2)[0]]
    assert all(c.remembered and c.words and not len(c.attention) for c in remembered.captions)
    assert both.captions == (*written.captions, *remembered.captions)
    assert not any(c.remembered for c in written.captions)
    (view,) = pipe.views(photos[0])
    assert remembered == pipe.tell(remembered.captions, seed=1, view=view)


def test_what_is_remembered_may_be_wrong_and_is_told_as_that(pipe, photos, monkeypatch):
    """The storyteller reads what was written of the photo as what it shows, and a little of what it brings to mind."""
    engine, read = pipe.writers["storyteller"].engine, []
    opened = engine.open

    def reading(prompt, *rest):
        if prompt.endswith("Title:"):  # else the title that a model was carried away with is read again
            read.append(prompt.split("\n"))
        return opened(prompt, *rest)

    monkeypatch.setattr(engine, "open", reading)
    result = pipe(photos[0], seed=1, nearest_sentences=3)
    remembered = [caption.text for caption in result.captions if caption.remembered]
    assert len(remembered) == 3 and read[0][2] == f"Perhaps: {' '.join(remembered[:2])}"
    assert read[0][1].startswith("Photo: ") and not any(text in read[0][1] for text in remembered)
    pipe(photos[0], seed=1, captions="retrieve", nearest_sentences=2)  # else there is nothing to tell of
    assert read[1][1] == f"Photo: {' '.join(remembered[:2])}" and read[1][2] == "Title:"
    pipe(photos[0], seed=1, captions="generate")
    assert read[2][1:] == [read[0][1], "Title:"]


def test_the_number_of_sentences_is_the_recipes(pipe, photos):
    assert StoryOptions().resolved().nearest_sentences == 5
    old = {"writer": "neural-storyteller", "captions": "retrieve"}
    assert StoryOptions(**old).resolved().nearest_sentences == 100
    assert StoryOptions(**old, nearest_sentences=7).resolved().nearest_sentences == 7
    assert StoryOptions(writer="neural-storyteller").resolved().nearest_sentences == 5  # beside those it writes
    result = pipe(photos[0], writer="neural-storyteller", captions="retrieve", beam_width=2, seed=1)
    assert len(result.captions) == len(SENTENCES)  # a hundred would be taken, if there were so many
    with pytest.raises(PictaleError, match="captions must be generate or retrieve or both"):
        pipe(photos[0], captions="remember")


def test_a_story_goes_on_with_remembered_captions_and_keeps_them(pipe, photos, tmp_path):
    story = pipe.start_story(photos, seed=1, captions="generate")
    assert not any(c.remembered for photo in story.photos for c in photo.captions)
    story = pipe.start_story(photos, seed=1)
    assert [len([c for c in photo.captions if c.remembered]) for photo in story.photos] == [len(SENTENCES)] * 2
    story = pipe.start_story(photos, seed=1, captions="retrieve", nearest_sentences=2)
    assert [len(photo.captions) for photo in story.photos] == [2, 2]
    assert all(c.remembered for photo in story.photos for c in photo.captions)
    story.save(tmp_path / "story.json")
    assert Story.load(tmp_path / "story.json").photos[0].captions == story.photos[0].captions


def test_sentences_of_ones_own_from_list_file_and_folder(pipe, photos, tmp_path):
    kept = pipe.bank
    (tmp_path / "mine.txt").write_text("A dog.\n\nA cat.\n", encoding="utf-8")
    assert pipe.use_sentences(tmp_path / "mine.txt").sentences == ("A dog.", "A cat.")
    pipe.bank.save(tmp_path / "bank")
    assert {n.text for n in pipe.nearest_sentences(photos[0])[0]} == {"A dog.", "A cat."}
    assert pipe.use_sentences(kept) is kept
    assert pipe.use_sentences(tmp_path / "bank").sentences == ("A dog.", "A cat.")
    with pytest.raises(PictaleError, match="Cannot read sentences"):
        pipe.use_sentences(tmp_path / "missing.txt")
    with pytest.raises(ModelFolderError, match="another joint embedding"):
        pipe.use_sentences(CaptionBank(kept.sentences, kept.vectors, "0" * 12))
    pipe.use_sentences(kept)


def test_without_an_embedding_it_says_so(photos):
    pipe = tiny_pipeline()
    assert not pipe.can_retrieve
    for call in (
        lambda: pipe.nearest_sentences(photos),
        lambda: pipe(photos[0], captions="retrieve"),
        lambda: pipe.search(".", "a dog"),
        lambda: pipe.use_sentences(["a dog"]),
    ):
        with pytest.raises(ModelFolderError, match="no joint embedding"):
            call()
    pipe.set_embedding(tiny_embedding(pipe.captioner))
    assert not pipe.can_retrieve
    with pytest.raises(ModelFolderError, match="use_sentences"):
        pipe.nearest_sentences(photos)
    with pytest.raises(ModelFolderError, match="another backbone"):
        pipe.set_embedding(tiny_embedding(tiny_captioner(seed=3)))


def save_with_embedding(folder, captioner):
    place = save_tiny_pipeline(folder)
    embedding = tiny_embedding(captioner)
    embedding.save_pretrained(folder / "tiny-embedding")
    embedding.tokenizer.save_pretrained(folder / "tiny-embedding")
    CaptionBank.from_sentences(SENTENCES, embedding).save(folder / "tiny-embedding")
    description = json.loads((place / "pipeline.json").read_text())
    description["components"]["embedding"] = "pictale/tiny-embedding"
    (place / "pipeline.json").write_text(json.dumps(description))
    return place


def test_a_pipeline_folder_brings_its_embedding_and_bank(pipe, photos, tmp_path):
    loaded = StoryPipeline.from_pretrained(save_with_embedding(tmp_path, pipe.captioner))
    assert loaded.can_retrieve and set(loaded.bank.sentences) == set(SENTENCES)
    here, there = pipe.nearest_sentences(photos, 3), loaded.nearest_sentences(photos, 3)
    assert [[n.text for n in near] for near in here] == [[n.text for n in near] for near in there]


def test_a_saved_pipeline_remembers(pipe, photos, tmp_path):
    again = StoryPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "whole"))
    assert again.bank.sentences == pipe.bank.sentences
    here, there = pipe.nearest_sentences(photos, 3), again.nearest_sentences(photos, 3)
    assert [[n.text for n in near] for near in here] == [[n.text for n in near] for near in there]


def test_a_pipeline_brings_an_embedding_that_reads_with_its_encoder(photos, tmp_path):
    pipe = tiny_pipeline()
    expected = {"backbone_fingerprint": backbone_fingerprint(pipe.captioner.encoder.backbone)}
    expected |= {"hidden_size": pipe.encoder.config.hidden_size, "encoder_fingerprint": pipe.encoder.fingerprint()}
    config = PictaleJointEmbeddingConfig(feature_size=64, sentence_encoder="skip-thoughts", **expected)
    pipe.set_embedding(PictaleJointEmbedding(config).eval())
    pipe.use_sentences(SENTENCES)
    again = StoryPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "whole"))
    one = again.similarities(photos, SENTENCES[0])
    np.testing.assert_allclose(one, pipe.similarities(photos, SENTENCES[:1]), atol=1e-5)


def test_an_embedding_of_another_captioner_only_takes_retrieval_away(photos, tmp_path):
    loaded = StoryPipeline.from_pretrained(save_with_embedding(tmp_path, tiny_captioner(seed=5)))
    told = loaded(photos[0], seed=1)
    assert not loaded.can_retrieve and told.story and not any(c.remembered for c in told.captions)
    assert told == loaded(photos[0], seed=1, captions="generate")
    with pytest.raises(ModelFolderError, match="another backbone"):
        loaded(photos[0], captions="retrieve")


# -- search ------------------------------------------------------------------------------------------------------------
# -- stories are chosen by the photo itself --------------------------------------------------------------------------
def pictures(result):
    return [candidate.scores["picture"] for choice in result.choices for candidate in choice]


def test_candidates_are_compared_with_the_photo(pipe, photos):
    result = pipe(photos[0], style="romance", seed=1)
    (view,) = pipe.views(photos[0])
    texts = [candidate.text for candidate in result.candidates]
    for text, candidate in zip(texts, result.candidates, strict=True):
        mean = pipe.embedding.embed_texts(split_sentences(text) or [text]).mean(0)
        assert candidate.scores["picture"] == pytest.approx(float(mean @ view / np.linalg.norm(mean)), abs=1e-4)
    assert len(set(pictures(result))) > 1


def test_the_picture_is_compared_with_the_passage_so_far(pipe, photos):
    """The score of a later sentence is that of all sentences until then."""
    (view,) = pipe.views(photos[0])
    wish = Wish(np.ones(24, np.float32), view=view)
    ranking = pipe._ranking(wish, StoryOptions())
    ranking.score([Proposal("A dog sleeps.", -1.0), Proposal("A red house.", -1.0)])
    ranking.keep(1, "A red house.")
    (second,) = ranking.score([Proposal("The old lady said no.", -1.0)])
    (whole,) = pipe._ranking(wish, StoryOptions()).score([Proposal("A red house. The old lady said no.", -1.0)])
    assert second.scores["picture"] == pytest.approx(whole.scores["picture"], abs=1e-5)


def test_the_weight_of_the_picture_brings_the_story_nearer_to_it(pipe, photos):
    def nearness(weight):
        results = [pipe(photos, style="horror", seed=s, weight_picture=weight, candidates=6) for s in range(3)]
        best = [choice[0].scores["picture"] for pair in results for r in pair for choice in r.choices]
        return np.mean(best)

    assert nearness(50.0) > nearness(1e-6) > nearness(-50.0)


def test_a_call_a_story_and_captions_with_a_view_tell_the_same(pipe, photos):
    story = pipe(photos[0], style="romance", seed=3)
    assert story.story == pipe.tell(story.captions, "romance", 3, pipe.views(photos[0])[0]).story
    begun = pipe.start_story(photos[0], "romance", 3)
    assert begun.text == story.story and begun.passages[0].scores["picture"] != 0
    file = io.BytesIO(draw("red", "circle"))  # which can be read only once
    assert pipe.start_story(file, "romance", 3).text == story.story


def test_a_story_without_a_look_at_the_photo(pipe, photos):
    captions = pipe.caption(photos[0])[0]
    own = ["A dog sleeps on the beach."]
    for result in (
        pipe.tell(captions, seed=1),
        pipe(photos[0], seed=1, weight_picture=0.0),
        tiny_pipeline()(photos[0], seed=1),
    ):
        assert set(pictures(result)) == {0.0}
    old = pipe(photos[0], seed=1, writer="neural-storyteller", beam_width=2)
    assert {tuple(candidate.scores) for candidate in old.candidates} == {("likelihood",)}
    assert pipe.start_story(photos[0], seed=1, captions=own).passages[0].scores["picture"] == 0
    assert pipe.continue_story(pipe.start_story(photos[0], seed=1), seed=2).passages[-1].scores["picture"] == 0


def test_a_sentence_finds_photos_in_the_order_of_their_vectors(pipe, folder, tmp_path):
    found = pipe.search(folder, "a red house", k=100, index=tmp_path / "index")
    assert len(found) == len(COLOURS) * len(SHAPES)  # neither the broken one nor the hidden one
    expected = pipe.similarities([photo.path for photo in found], ["a red house"])[:, 0]
    np.testing.assert_allclose([photo.similarity for photo in found], expected, atol=2e-3)
    assert [p.similarity for p in found] == sorted((p.similarity for p in found), reverse=True)
    assert pipe.search(folder, "a red house", k=2, index=tmp_path / "index") == found[:2]


def test_an_index_is_kept_and_brought_up_to_date(pipe, folder, tmp_path, monkeypatch):
    looked, index = counted(pipe, monkeypatch), tmp_path / "index"
    shares = []
    pipe.search(folder, "a dog", index=index, progress=lambda share, _: shares.append(share))
    assert sum(looked) == 8 and shares[-1] == 1
    pipe._seen_by = None
    pipe.search(folder, "a cat", index=index)
    assert sum(looked) == 8
    (folder / "red-circle.png").unlink()
    changed = folder / "blue-circle.png"
    changed.write_bytes(draw("yellow", "circle"))
    os.utime(changed, ns=(1, 1))
    names = [p.path.name for p in pipe.search(folder, "a cat", k=100, index=index)]
    assert sum(looked) == 9 and "red-circle.png" not in names and len(names) == 7
    [file] = index.glob("*.safetensors")
    kept, _ = PhotoIndex.open(folder, pipe.embedding.fingerprint(), index)
    assert kept.unreadable == ["broken.jpg"]
    assert not PhotoIndex.open(folder, "another", index)[0].vectors
    file.write_bytes(b"damaged")
    assert len(pipe.search(folder, "a cat", k=100, index=index)) == 7
    assert not list(index.glob("*.writing"))


def test_a_cache_that_cannot_be_written_and_odd_names_are_no_hindrance(pipe, folder, tmp_path):
    index = tmp_path / "index"
    odd = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))  # a name in Latin-1, as old disks have
    first = pipe.search(odd, "a red house", k=3, index=index)
    [file] = index.iterdir()
    file.unlink()
    file.with_name(f"{file.name}.{os.getpid()}.writing").mkdir()
    assert pipe.search(odd, "a red house", k=3, index=index) == first and not file.exists()


def test_what_cannot_be_searched(pipe, folder, tmp_path):
    with pytest.raises(ImageError, match="no folder"):
        pipe.search(tmp_path / "nowhere", "a dog")
    with pytest.raises(TextError, match="nothing to search for"):
        pipe.search(folder, " ... ")
    with pytest.raises(TextError, match="1 or more"):
        pipe.search(folder, "a dog", k=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="no photo that can be read"):
        pipe.search(empty, "a dog", index=tmp_path / "index")


def test_search_in_the_terminal(pipe, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PICTALE_CACHE", str(tmp_path / "cache"))
    model = str(save_with_embedding(tmp_path, pipe.captioner))
    assert main(["--model", model, "--search", "a red house", "--count", "3", "--json", str(folder)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["photo"] for line in lines] == [str(p.path) for p in pipe.search(folder, "a red house", 3)]
    assert main(["--model", model, "--search", "a red house"]) == 2
    assert "name the folder" in capsys.readouterr().err
    assert main(["--model", model, str(folder / "red-circle.png"), "--captions", "retrieve", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"][0]["text"] in SENTENCES


# -- the embedding that ships ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shipped(embedded):
    pipe = StoryPipeline.from_pretrained(embedded)
    if not pipe.can_retrieve:
        pytest.skip("the embedded default has no joint embedding for its captioner")
    return pipe


def test_the_shipped_bank_sees_a_bear_a_kite_and_skiers(shipped, example_photos):
    photos = {path.stem: path for path in example_photos}
    near = dict(zip(photos, shipped.nearest_sentences(list(photos.values()), 10), strict=True))
    for name, words in {"bear": ("bear",), "kites": ("kite",), "skier": ("ski", "snow", "slope")}.items():
        assert sum(any(word in n.text.lower() for word in words) for n in near[name]) >= 5, near[name]
    for found in near.values():
        assert len({n.text for n in found}) == 10 and 0.1 < found[-1].similarity <= found[0].similarity < 1


def test_the_shipped_search_finds_the_horses(shipped, example_photos, tmp_path):
    found = shipped.search(example_photos[0].parent, "people ride horses", k=3, index=tmp_path)
    assert "horses" in {photo.path.stem for photo in found}
