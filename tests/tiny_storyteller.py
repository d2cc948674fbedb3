"""A storyteller of two small layers with random weights, as a folder."""

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    "Write a mystery, short.\nPhoto: A pair of yellow shoes. A red suitcase.\nTitle: The Yellow Shoes\nStory:",
    "Write a fairy tale, medium.\nPage: The king had a daughter.\nPhoto: A dog runs on the beach.\nTitle: The Dog",
    "Write a plain story, long.\nObjects: boat, lake\nStory: Once there was a boat. It lay on the lake.\nNext:",
]


def save_tiny_storyteller(folder: Path, **settings) -> Path:
    """Write it; `settings` are of its LlamaConfig."""
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXTS * 3, vocab_size=400, min_frequency=1, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.update(settings)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
