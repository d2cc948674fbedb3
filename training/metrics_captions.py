"""Caption metrics with the reference implementations of COCO (pycocoevalcap): BLEU-1..4, METEOR, ROUGE-L, CIDEr.

Captions are always generated, never teacher-forced. PTB tokenization (Stanford's, through Java) is what papers use;
where Java is missing or fails a plain tokenization takes its place, and the report says so.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modeling.errors import DataError


@dataclass(frozen=True)
class CaptionScores:
    """What captions are worth.

    Args:
        scores: in the papers' scale (x 100).
        tokenizer: "ptb", or what took its place.
        missing: metric -> why it was not measured.
        cider_each: CIDEr of each photograph, x 100; their mean is the score.
    """

    scores: dict[str, float]
    tokenizer: str
    missing: dict[str, str]
    cider_each: tuple[float, ...] = ()


def plain_tokenize(text: str) -> str:
    """Lower-case words without punctuation; differs from PTB on contractions and hyphens only."""
    return " ".join(re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower()))


def has_java() -> bool:
    return shutil.which("java") is not None


def _tokenize(texts: Sequence[Sequence[str]], ptb: bool) -> dict[int, list[str]]:
    """Tokens of every text, as strings with spaces between; `texts` has no line breaks inside.

    Raises:
        OSError: the PTB tokenizer cannot be started, or has not answered for every text.
    """
    if not ptb:
        return {i: [plain_tokenize(t) for t in group] for i, group in enumerate(texts)}
    tokenizer = _load("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    captions = {i: [{"caption": " ".join(t.split())} for t in group] for i, group in enumerate(texts)}
    with _quiet():
        tokens = tokenizer.tokenize(captions)
    if [len(tokens.get(i, ())) for i in captions] != [len(group) for group in texts]:
        raise OSError("the PTB tokenizer gave too few lines")
    return tokens


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr x 100 with the plain tokenization, no Java: quick enough to follow a training run."""
    Cider = _load("pycocoevalcap.cider.cider").Cider
    return 100 * Cider().compute_score(_tokenize(references, False), _tokenize([[h] for h in hypotheses], False))[0]


def score_captions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], meteor: bool = True
) -> CaptionScores:
    """All metrics of one caption per photograph.

    Args:
        hypotheses: one caption each.
        references: the captions people wrote, in step.
        meteor: also METEOR, which starts a Java process.

    Raises:
        DataError: pycocoevalcap is not installed, or there is nothing to score.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} captions cannot be scored against references of {len(references)} photographs."
        )
    written = [[hypothesis] for hypothesis in hypotheses]
    tokenizer = "ptb" if has_java() else "plain (no Java: not comparable with papers)"
    try:
        truth, written = _tokenize(references, tokenizer == "ptb"), _tokenize(written, tokenizer == "ptb")
    except OSError as error:
        tokenizer = f"plain ({error}: not comparable with papers)"
        truth, written = _tokenize(references, False), _tokenize([[hypothesis] for hypothesis in hypotheses], False)
    bleu = _load("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(truth, written, verbose=0)[0]
    scores = {f"bleu_{n}": 100 * value for n, value in enumerate(bleu, 1)}
    scores["rouge_l"] = 100 * _load("pycocoevalcap.rouge.rouge").Rouge().compute_score(truth, written)[0]
    mean, each = _load("pycocoevalcap.cider.cider").Cider().compute_score(truth, written)
    scores["cider"] = 100 * mean
    missing = {}
    if not meteor:
        missing["meteor"] = "not asked for"
    elif not has_java():
        missing["meteor"] = "no Java"
    else:
        try:
            scores["meteor"] = 100 * _meteor(truth, written)
        except (OSError, ValueError) as error:
            missing["meteor"] = f"its Java program failed ({type(error).__name__})"
    scores = {name: round(float(value), 2) for name, value in scores.items()}
    return CaptionScores(scores, tokenizer, missing, tuple(100 * float(value) for value in each))


def _meteor(truth: dict[int, list[str]], written: dict[int, list[str]]) -> float:
    """METEOR of the corpus. A program that dies breaks the pipe (OSError) or answers with nothing (ValueError)."""
    scorer = _load("pycocoevalcap.meteor.meteor").Meteor()
    try:
        return scorer.compute_score(truth, written)[0]
    finally:
        if scorer.lock.locked():  # left locked by a failure; its destructor would wait for it for ever
            scorer.lock.release()
            scorer.meteor_p.kill()


def bootstrap_interval(
    values: Sequence[float], draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` over photographs drawn with replacement (Efron, 1979).

    For CIDEr the weights of words stay those of the whole split, as in its reference implementation.
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence standard output, and standard error below Python too, where a Java program writes its statistics."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _load(module: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError("Caption metrics need pycocoevalcap: pip install -r training/requirements.txt") from None
