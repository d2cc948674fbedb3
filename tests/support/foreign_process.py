"""Loads copies of the model folders with transformers' Auto classes alone, in a process that has no Pictale package.

    python foreign_process.py FOLDER_OF_COPIES PHOTO ...

Prints one JSON object with what came out. Also run by hand in a fresh environment, see hub_configs/README.md.
"""

import importlib.util
import json
import sys
from pathlib import Path


def captioner(place: str, photos: list[str]) -> dict:
    from PIL import Image
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        pipeline,
    )

    model = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=True).prepare_for_inference()
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
    pictures = [Image.open(photo) for photo in photos]
    pixels = AutoImageProcessor.from_pretrained(place, trust_remote_code=True)(pictures, return_tensors="pt")
    ids = model.generate(**processor(images=pictures, return_tensors="pt"))
    labels = processor(text=["a dog runs", "a cat"]).labels
    captioning = pipeline("image-captioning", model=place, trust_remote_code=True)
    return {
        "config": type(AutoConfig.from_pretrained(place, trust_remote_code=True)).__name__,
        "model": type(model).__name__,
        "processor": type(processor).__name__,
        "pixels": float(pixels.pixel_values.double().sum()),
        "ids": ids.tolist(),
        "captions": processor.batch_decode(ids, skip_special_tokens=True),
        "tokenizer": AutoTokenizer.from_pretrained(place, trust_remote_code=True).decode(ids[0]),
        "labels": labels.tolist(),
        "pipeline": captioning(photos, batch_size=2, num_captions=2),
        "single": captioning(photos[0]),
        "attention": captioning(photos[0], attention=True)[0],
    }


def encoder(place: str) -> dict:
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_pretrained(place, trust_remote_code=True)
    vectors = model.encode(["A dog runs on the beach.", "Two children play."]).tolist()
    config = type(AutoConfig.from_pretrained(place, trust_remote_code=True)).__name__
    return {"config": config, "model": type(model).__name__, "vectors": vectors}


def decoder(place: str) -> dict:
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(place, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    thought = torch.linspace(-1, 1, model.config.thought_size).unsqueeze(0) / 10
    words = torch.tensor([tokenizer.convert_tokens_to_ids(["dog", "red"])])
    ids = model.generate(thought, content_ids=words, do_sample=False, max_new_tokens=12)
    config = type(AutoConfig.from_pretrained(place, trust_remote_code=True)).__name__
    return {"config": config, "model": type(model).__name__, "ids": ids.tolist(), "text": tokenizer.decode(ids[0])}


def embedding(place: str) -> dict:
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_pretrained(place, trust_remote_code=True)
    vectors = model.embed_texts(["A dog runs on the beach.", "Two children play."]).tolist()
    config = type(AutoConfig.from_pretrained(place, trust_remote_code=True)).__name__
    return {"config": config, "model": type(model).__name__, "vectors": vectors}


def storyteller(place: str, photos: list[str]) -> dict:
    from transformers import AutoConfig, AutoModel, pipeline

    model = AutoModel.from_pretrained(place, trust_remote_code=True)
    telling = pipeline("image-to-story", model=place, trust_remote_code=True)
    asked = {"style": list(model.pipe.styles)[-1], "seed": 5, "candidates": 2, "length": "short"}
    return {
        "config": type(AutoConfig.from_pretrained(place, trust_remote_code=True)).__name__,
        "model": type(model).__name__,
        "asked": asked,
        "direct": model.pipe(photos[0], **asked).story,
        "stories": telling(photos, batch_size=2, **asked),
        "single": telling(photos[0], **asked),
    }


KINDS = {
    "pictale_captioner": captioner,
    "pictale_skip_thoughts": encoder,
    "pictale_story_decoder": decoder,
    "pictale_joint_embedding": embedding,
    "pictale_storyteller": storyteller,
}


def main() -> None:
    assert importlib.util.find_spec("modeling") is None, "the Pictale package can be imported: this proves nothing"
    root, *photos = sys.argv[1:]
    found = {}
    for folder in sorted(Path(root).iterdir()):
        if (folder / "model.safetensors").exists() or (folder / "pipeline.json").exists():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if (kind := KINDS.get(config["model_type"])) is None:  # transformers' own, which needs no code of ours
                continue
            sees = kind in (captioner, storyteller)
            found[folder.name] = kind(str(folder), photos) if sees else kind(str(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
