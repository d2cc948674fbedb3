"""Loads a model folder as a stranger would, and lets it do its work once; a script of its own, not of the package.

    python hub_trial.py FOLDER

`training.push_to_hub` runs it where no other file of this project can be imported. It prints what came out.
"""

import json
import sys
from pathlib import Path


def try_captioner(place: str) -> str:
    from transformers import pipeline

    return pipeline("image-captioning", model=place, trust_remote_code=True)(picture())[0]["generated_text"]


def try_encoder(place: str) -> str:
    from transformers import AutoModel

    vectors = AutoModel.from_pretrained(place, trust_remote_code=True).encode(["A dog runs on the beach."])
    return f"a vector of {vectors.shape[1]}"


def try_decoder(place: str) -> str:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(place, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    thought = torch.linspace(-1, 1, model.config.thought_size).unsqueeze(0) / 10
    ids = model.generate(thought, do_sample=False, min_new_tokens=3, max_new_tokens=12)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def try_storyteller(place: str) -> str:
    from transformers import pipeline

    telling = pipeline("image-to-story", model=place, trust_remote_code=True)
    return telling(picture(), seed=1, candidates=2, passages=1)["story"]


def try_embedding(place: str) -> str:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(place, trust_remote_code=True)
    if model.config.sentence_encoder != "gru":  # it reads with another model's encoder
        return f"a {type(model).__name__}"
    return f"a vector of {model.embed_texts(['A dog runs on the beach.']).shape[1]}"


def try_loading(place: str) -> str:
    from transformers import AutoModel

    return f"a {type(AutoModel.from_pretrained(place, trust_remote_code=True)).__name__}"


def picture():
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB")


TRIALS = {
    "pictale_captioner": try_captioner,
    "pictale_skip_thoughts": try_encoder,
    "pictale_story_decoder": try_decoder,
    "pictale_joint_embedding": try_embedding,
    "pictale_storyteller": try_storyteller,
}


if __name__ == "__main__":
    kind = json.loads(Path(sys.argv[1], "config.json").read_text(encoding="utf-8"))["model_type"]
    print(TRIALS.get(kind, try_loading)(sys.argv[1]))
