"""Caption metrics with the reference implementations of COCO (pycocoevalcap): BLEU-1..4, METEOR, ROUGE-L, CIDEr.

Captions are always generated, never teacher-forced. PTB tokenization (Stanford's, through Java) is what papers use;
where Java is missing a plain tokenization takes its place, and the report says so.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from modeling.errors import DataError


@dataclass(frozen=True)
class CaptionScores:
    """Scores in the papers' scale (x 100), the tokenizer used and why a metric is missing."""

    scores: dict[str, float]
    tokenizer: str
    missing: dict[str, str]


def plain_tokenize(text: str) -> str:
    """Lower-case words without punctuation; differs from PTB on contractions and hyphens only."""
    return " ".join(re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower()))


def has_java() -> bool:
    return shutil.which("java") is not None


def _tokenize(texts: Sequence[Sequence[str]], ptb: bool) -> dict[int, list[str]]:
    if not ptb:
        return {i: [plain_tokenize(t) for t in group] for i, group in enumerate(texts)}
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        return PTBTokenizer().tokenize({i: [{"caption": t} for t in group] for i, group in enumerate(texts)})


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
    ptb = has_java()
    truth, written = _tokenize(references, ptb), _tokenize([[h] for h in hypotheses], ptb)
    bleu = _load("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(truth, written, verbose=0)[0]
    scores = {f"bleu_{n}": 100 * value for n, value in enumerate(bleu, 1)}
    scores["rouge_l"] = 100 * _load("pycocoevalcap.rouge.rouge").Rouge().compute_score(truth, written)[0]
    scores["cider"] = 100 * _load("pycocoevalcap.cider.cider").Cider().compute_score(truth, written)[0]
    missing = {}
    if not meteor:
        missing["meteor"] = "not asked for"
    elif not ptb:
        missing["meteor"] = "needs Java, which is not installed"
    else:
        scores["meteor"] = 100 * _load("pycocoevalcap.meteor.meteor").Meteor().compute_score(truth, written)[0]
    scores = {name: round(float(value), 2) for name, value in scores.items()}
    return CaptionScores(scores, "ptb" if ptb else "plain (no Java: not comparable with papers)", missing)


def _load(module: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError("Caption metrics need pycocoevalcap: pip install -r training/requirements.txt") from None
