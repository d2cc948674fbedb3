"""Turn the published files of 2015 into model folders of this project: no Theano, no Python 2, no pickles afterwards.

    python -m training.convert_original skip-thoughts --source FOLDER --output converted/combine-skip
    python -m training.convert_original decoder --source romance.npz romance_dictionary.pkl --output converted/romance
    python -m training.convert_original joint-embedding --source coco_embedding.npz --output converted/coco-embedding
    python -m training.convert_original style --source romance_style.npy caption_style.npy \\
        --encoder converted/combine-skip --output converted/styles

`--source` takes files and folders; what belongs to the kind is found by what it holds:

    skip-thoughts     uni_skip.npz, bi_skip.npz or both; utable.npy, btable.npy and dictionary.txt, or (an encoder
                      of one's own, its vocabulary not expanded) the pickled dictionary of its training
    decoder           romance.npz (options beside it in romance.npz.pkl) and its pickled dictionary
    joint-embedding   coco_embedding.npz, with .pkl and .dictionary.pkl beside it
    style             .npy vectors; each becomes a style of the converted encoder given by --encoder

Sizes are read from the arrays. The folders load with `AutoModel.from_pretrained`; `modeling.original_storyteller` tells
stories with them as neural-storyteller did. Decoders inside a skip-thoughts file only served its training: left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modeling.configuration_originals import (
    PictaleOriginalDecoderConfig,
    PictaleOriginalEmbeddingConfig,
    PictaleOriginalSkipThoughtsConfig,
)
from modeling.errors import PictaleError
from modeling.fingerprints import encoder_fingerprint
from modeling.model_folder import load_component
from modeling.modeling_original_decoder import PictaleOriginalDecoder
from modeling.modeling_original_embedding import PictaleOriginalJointEmbedding
from modeling.modeling_original_encoder import EOS_WORD, TABLES, UNKNOWN_WORD, PictaleOriginalSkipThoughtsEncoder
from modeling.styles import Style

from .original_files import (
    NpzArrays,
    OriginalFileError,
    count_rows,
    read_dictionary,
    read_pickle,
    read_rows,
    read_vector,
    read_words,
)

State = dict[str, torch.Tensor]


# -- what lies where --------------------------------------------------------------------------------------------------
def source_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files given, and those in the folders given."""
    files: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise OriginalFileError(f"There is no file or folder {source}.")
        files += sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    return files


def find_archive(
    files: list[Path], what: str, fits: Callable[[NpzArrays], bool], needed: bool = True
) -> NpzArrays | None:
    """The one .npz file that `fits`."""
    archives = [archive for archive in map(NpzArrays, (f for f in files if f.suffix == ".npz")) if fits(archive)]
    if len(archives) > 1:
        names = " and ".join(str(a.path) for a in archives)
        raise OriginalFileError(f"{names} are both {what}: give one of them.")
    if needed and not archives:
        raise OriginalFileError(f"No .npz file in --source holds {what}.")
    return archives[0] if archives else None


def find_dictionary(files: list[Path], archive: Path) -> Path:
    """The pickled dictionary: the one named after the archive, or the only pickle that is not an archive's options."""
    beside = archive.with_name(f"{archive.name}.dictionary.pkl")
    if beside.is_file():
        return beside
    pickles = [f for f in files if f.suffix == ".pkl" and not f.name.endswith(".npz.pkl")]
    if len(pickles) != 1:
        found = f"{len(pickles)} are there" if pickles else "none is there"
        raise OriginalFileError(f"{archive} needs its pickled dictionary (word -> number) in --source, and {found}.")
    return pickles[0]


def read_options(archive: Path) -> dict:
    """Options beside an archive (`NAME.npz.pkl`); empty where there are none."""
    path = archive.with_name(f"{archive.name}.pkl")
    options = read_pickle(path) if path.is_file() else {}
    if not isinstance(options, dict):
        raise OriginalFileError(f"{path} does not hold the options of {archive.name}: remove or replace it.")
    return options


# -- weights ----------------------------------------------------------------------------------------------------------
def gru_state(arrays: NpzArrays, prefix: str, name: str, width: int) -> State:
    """One GRU as torch has it, for inputs of `width`.

    The original keeps matrices input x output, gates [r | u] in W, b, U and the candidate in Wx, bx, Ux; torch stacks
    r, z = u, n in rows. There is no bias on the recurrent side.
    """
    size = arrays(f"{prefix}_Ux", None, None).shape[1]
    w, wx = arrays(f"{prefix}_W", width, 2 * size), arrays(f"{prefix}_Wx", width, size)
    u, ux = arrays(f"{prefix}_U", size, 2 * size), arrays(f"{prefix}_Ux", size, size)
    biases = [arrays(f"{prefix}_b", 2 * size), arrays(f"{prefix}_bx", size)]
    return {
        f"{name}.weight_ih_l0": _tensor(np.concatenate([w, wx], 1).T),
        f"{name}.weight_hh_l0": _tensor(np.concatenate([u, ux], 1).T),
        f"{name}.bias_ih_l0": _tensor(np.concatenate(biases)),
        f"{name}.bias_hh_l0": torch.zeros(3 * size),
    }


def linear_state(arrays: NpzArrays, prefix: str, name: str, rows: int, columns: int | None) -> State:
    """A fully connected layer from `rows` inputs to `columns` outputs."""
    weight = arrays(f"{prefix}_W", rows, columns)
    return {f"{name}.weight": _tensor(weight.T), f"{name}.bias": _tensor(arrays(f"{prefix}_b", weight.shape[1]))}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def with_weights(model: type[PreTrainedModel], config, state: State) -> PreTrainedModel:
    """A model of these weights, its own initialisation left out."""
    with torch.device("meta"):
        built = model(config)
    built.load_state_dict(state, assign=True)
    return built.eval()


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Ids of words, one for each of `words`; text is split at spaces."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN_WORD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN_WORD, eos_token=EOS_WORD)


def words_by_id(dictionary: dict[str, int], count: int) -> list[str]:
    """The words of ids 0 to `count` - 1 of a training dictionary; 0 is `<eos>`, 1 UNK, words beyond are dropped."""
    words = [EOS_WORD, UNKNOWN_WORD, *(f"<unused {i}>" for i in range(2, count))]
    for word, number in dictionary.items():
        if 2 <= number < count and word not in (EOS_WORD, UNKNOWN_WORD):
            words[number] = word
    return words


# -- the kinds --------------------------------------------------------------------------------------------------------
def convert_skip_thoughts(files: list[Path], output: Path) -> None:
    """Uni-skip, bi-skip or both, with their word tables."""
    uni = find_archive(files, "a uni-skip encoder", lambda a: _is_encoder(a) and "encoder_r_Ux" not in a, needed=False)
    bi = find_archive(files, "a bi-skip encoder", lambda a: "encoder_r_Ux" in a, needed=False)
    if uni is None and bi is None:
        raise OriginalFileError("No .npz file in --source holds a skip-thoughts encoder (encoder_W, encoder_Ux ...).")
    state: State = {}
    widths = {part: a("Wemb", None, None).shape[1] for part, a in (("uni", uni), ("bi", bi)) if a is not None}
    if uni is not None:
        state |= gru_state(uni, "encoder", "uni", widths["uni"])
    if bi is not None:
        state |= gru_state(bi, "encoder", "bi", widths["bi"])
        state |= gru_state(bi, "encoder_r", "bi_reverse", widths["bi"])
    words = write_tables(files, {"uni": uni, "bi": bi}, widths, output)
    config = PictaleOriginalSkipThoughtsConfig(
        vocab_size=len(words),
        uni_embedding_size=widths.get("uni", 0),
        uni_hidden_size=state["uni.weight_hh_l0"].size(1) if uni else 0,
        bi_embedding_size=widths.get("bi", 0),
        bi_hidden_size=state["bi.weight_hh_l0"].size(1) if bi else 0,
    )
    model = with_weights(PictaleOriginalSkipThoughtsEncoder, config, state)
    model.config.name_or_path = str(output)  # where its tables lie
    model.save_pretrained(output)
    word_tokenizer(words).save_pretrained(output)


def _is_encoder(archive: NpzArrays) -> bool:
    return "encoder_Ux" in archive and "ff_image_W" not in archive


def write_tables(files: list[Path], archives: dict, widths: dict[str, int], output: Path) -> list[str]:
    """Write the tables as plain float32 .npy files, row by row, and give the words of the rows.

    Of a word that stands twice in dictionary.txt, the last vector counts, as in the original's dictionary.
    """
    tables = {part: [f for f in files if f.suffix == ".npy" and f"{part[0]}table" in f.name] for part in widths}
    if not any(tables.values()):
        first = next(a for a in archives.values() if a is not None)
        dictionary = read_dictionary(find_dictionary(files, first.path))
        counts = {archives[part]("Wemb", None, None).shape[0] for part in widths}
        words = words_by_id(dictionary, min(counts))
        for part in widths:
            np.save(output / TABLES[part], archives[part]("Wemb", None, widths[part])[: len(words)])
        return words
    lists = [f for f in files if f.suffix == ".txt"]
    named = [f for f in lists if f.name == "dictionary.txt"] or lists
    if len(named) != 1:
        raise OriginalFileError(f"The tables need dictionary.txt in --source, and {len(named)} .txt files are there.")
    lines = read_words(named[0])
    last = {word: i for i, word in enumerate(lines)}  # keeps the order of first appearance
    if EOS_WORD not in last or UNKNOWN_WORD not in last:
        raise OriginalFileError(f"{named[0]} has no word {EOS_WORD} or {UNKNOWN_WORD}: it is cut off or another file.")
    for part, width in widths.items():
        if len(tables[part]) != 1:
            raise OriginalFileError(
                f"{part}_skip needs {part[0]}table.npy in --source, and {len(tables[part])} are there."
            )
        _write_table(tables[part][0], lines, last, width, output / TABLES[part])
    return list(last)


def _write_table(source: Path, lines: list[str], last: dict[str, int], width: int, target: Path) -> None:
    rows = count_rows(source)
    if rows != len(lines):
        raise OriginalFileError(
            f"{source} has {rows} rows and the dictionary {len(lines)} words: they do not belong together."
        )
    table = open_memmap(target, mode="w+", dtype=np.float32, shape=(len(last), width))
    place = {i: row for row, i in enumerate(last.values())}
    for i, vector in enumerate(tqdm(read_rows(source), desc=source.name, total=len(lines), unit="word", mininterval=2)):
        if vector.size != width or not np.isfinite(vector).all():
            raise OriginalFileError(f"{source}, row {i}: not {width} finite numbers, as the encoder's words have.")
        if i in place:
            table[place[i]] = vector
    table.flush()


def convert_decoder(files: list[Path], output: Path) -> None:
    """A passage decoder. Whether it has a deep output is told by its arrays."""
    arrays = find_archive(files, "a passage decoder", lambda a: "decoder_Ux" in a and "ff_state_W" in a)
    words, width = arrays("Wemb", None, None).shape
    size = arrays("decoder_Ux", None, None).shape[1]
    deep = "ff_hid_W" in arrays and read_options(arrays.path).get("doutput", True) is not False
    thought = arrays("ff_state_W", None, size).shape[0]
    state = {"words.weight": _tensor(arrays("Wemb", words, width))}
    state |= gru_state(arrays, "decoder", "gru", width)
    state |= linear_state(arrays, "ff_state", "initial", thought, size)
    if deep:
        state |= linear_state(arrays, "ff_hid", "deep", size, width)
    state |= linear_state(arrays, "ff_logit", "output", width if deep else size, words)
    config = PictaleOriginalDecoderConfig(words, width, size, thought, deep)
    with_weights(PictaleOriginalDecoder, config, state).save_pretrained(output)
    dictionary = read_dictionary(find_dictionary(files, arrays.path))
    word_tokenizer(words_by_id(dictionary, words)).save_pretrained(output)


def convert_joint_embedding(files: list[Path], output: Path) -> None:
    """An embedding of photographs and sentences, with a GRU or a bag of words."""
    arrays = find_archive(files, "a joint embedding", lambda a: "ff_image_W" in a)
    words, width = arrays("Wemb", None, None).shape
    features, size = arrays("ff_image_W", None, None).shape
    state = {"words.weight": _tensor(arrays("Wemb", words, width))}
    state |= linear_state(arrays, "ff_image", "image", features, size)
    kind = "gru" if "encoder_Ux" in arrays else "bow"
    if kind == "gru":
        state |= gru_state(arrays, "encoder", "gru", width)
    if (state["gru.weight_hh_l0"].size(1) if kind == "gru" else width) != size:
        raise OriginalFileError(f"{arrays.path}: sentences and photographs have vectors of different widths.")
    config = PictaleOriginalEmbeddingConfig(words, width, size, features, kind)
    with_weights(PictaleOriginalJointEmbedding, config, state).save_pretrained(output)
    dictionary = read_dictionary(find_dictionary(files, arrays.path))
    word_tokenizer(words_by_id(dictionary, words)).save_pretrained(output)


def convert_styles(files: list[Path], output: Path, encoder_folder: str) -> None:
    """Mean vectors, bound to the converted encoder that they were made with."""
    vectors = [f for f in files if f.suffix == ".npy" and not f.name.endswith("table.npy")]
    if not vectors:
        raise OriginalFileError("No .npy file in --source: give romance_style.npy, caption_style.npy or the like.")
    load = PictaleOriginalSkipThoughtsEncoder.from_pretrained
    encoder = load_component(load, Path(encoder_folder), "converted encoder")
    fingerprint = encoder_fingerprint(encoder)
    for file in vectors:
        vector = read_vector(file)
        if vector.size != encoder.config.hidden_size:
            raise OriginalFileError(
                f"{file} has {vector.size} numbers, and vectors of {encoder_folder} have {encoder.config.hidden_size}: "
                "give the encoder it was made with."
            )
        name = file.stem.removesuffix("_style").replace("_", " ")
        source = f"{file.name} of an original model; how many passages it is the mean of is not recorded"
        Style(name, vector, 0, source, fingerprint, (0, 0)).save(output / f"{file.stem}.safetensors")


KINDS: dict[str, Callable[..., None]] = {
    "skip-thoughts": convert_skip_thoughts,
    "decoder": convert_decoder,
    "joint-embedding": convert_joint_embedding,
    "style": convert_styles,
}


def convert(kind: str, sources: Sequence[str | Path], output: str | Path, encoder: str | None = None) -> Path:
    """Convert into the folder `output`, which appears only when it is whole.

    Args:
        kind: One of `KINDS`.
        sources: Files and folders.
        output: A folder that does not exist yet, or is empty.
        encoder: Folder of the converted encoder, for styles.

    Raises:
        OriginalFileError: a file is missing, cut off, foreign or of unexpected shape, or `output` is taken.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OriginalFileError(f"{output} is there already: give --output a new folder.")
    if (kind == "style") != (encoder is not None):
        raise OriginalFileError(
            "--encoder names the converted encoder of styles: it is needed for them, and for them only."
        )
    files = source_files(sources)
    temporary = output.with_name(f"{output.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        KINDS[kind](files, temporary, *([encoder] if encoder else []))
        if output.is_dir():
            output.rmdir()
        os.replace(temporary, output)
    except OSError as error:
        raise OriginalFileError(f"Cannot write {output}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--source", nargs="+", required=True, help="files, or folders that hold them")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--encoder", default=None, help="for styles: folder of the converted encoder")
    args = parser.parse_args(arguments)
    try:
        print(convert(args.kind, args.source, args.output, args.encoder))
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
