"""Plots: what happens in short stories, as the thoughts of their sentences.

A story of which every sentence is told by one vector says the same five times, and comes to no end: the vector of a
photo does not know what happens next. A plot does. It is what a person's short story was about, sentence by sentence,
less what such stories are about on average; a passage follows it by

    x_t = s b + (1 - p) f (x - r c) + p d_t       d_t the thought of the plot's sentence t less the mean of all plots

so that the picture, the course of events and the style are one sum. Plans before stories are an old idea (Yao et al.,
Plan-And-Write, arXiv:1811.05701; prototypes that are rewritten: Guu et al., arXiv:1709.08878); here a plan is vectors
alone, and a romance may follow what happened on somebody's way to work. No words of those stories are kept. Where a
pipeline has a bookshelf, its pages are plots too (`modeling.story_plots`).

One safetensors file, built by `python -m training.build_plots`:

    codes       int8 [N, S, K]    round(z / scale), at most 127 in size, of z = d @ components.T
    scale       float32 [K]       the largest |z| of each component, over 127
    components  float16 [K, D]    the K principal directions of the sentences' thoughts, orthonormal
    anyway      float32 [N]       how near each plot is to photos in general, in the terms of `Plots.nearest`
    views       int8 [N, E]       127 times the unit mean of the sentences' vectors in a joint embedding; may be missing

with the fingerprints of the encoder and of the joint embedding in its metadata, to which it belongs.

Shapes: N plots, S sentences of each, K components, D thought width, E joint width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import ModelFolderError
from .neighbours import unit_rows
from .story_types import Source

PLOTS_FILE = "plots.safetensors"
_FORMAT, _VERSION = "pictale-plots", "1"
_HOW_TO_BUILD = "python -m training.build_plots"
PARTS = 2  # passages that one plot is told in
DRAWN = 3  # plots that a seed draws from


@dataclass(frozen=True)
class Events:
    """What happens in a passage.

    Args:
        thoughts: d of its sentences, float32 [sentences, D].
        page: The text that they are the thoughts of, where that is known: a passage must not say the same.
        source: The book that the page is from.
    """

    thoughts: np.ndarray
    page: str = ""
    source: Source | None = None


@dataclass(frozen=True)
class Plots:
    """Plots with compact thoughts, see the head of this file for the arrays.

    Args:
        encoder: Fingerprint of the skip-thought encoder.
        embedding: That of the joint embedding of `views`, or "".
        source: What they were made of, in words.
    """

    codes: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    anyway: np.ndarray
    encoder: str
    views: np.ndarray | None = None
    embedding: str = ""
    source: str = ""

    # -- making ------------------------------------------------------------------------------------------------------
    @classmethod
    def of(
        cls,
        thoughts: np.ndarray,
        components: np.ndarray,
        encoder: str,
        anyway: np.ndarray | None = None,
        views: np.ndarray | None = None,
        embedding: str = "",
        source: str = "",
    ) -> Plots:
        """From the thoughts of stories' sentences less the mean of such thoughts [N, S, D].

        Args:
            components: Directions that are kept, orthonormal [K, D].
            anyway: How near each is to photos in general [N]; None: all alike.
            views: Unit vectors of the stories in the joint space [N, E].
        """
        directions = components.astype(np.float16)
        places = thoughts @ directions.astype(np.float32).T  # [N, S, K]
        scale = np.maximum(np.abs(places).max((0, 1)), 1e-8).astype(np.float32) / 127
        codes = np.rint(places / scale).astype(np.int8)
        anyway = np.zeros(len(codes), np.float32) if anyway is None else anyway.astype(np.float32)
        seen = None if views is None else np.rint(127 * views).astype(np.int8)
        return cls(codes, scale, directions, anyway, encoder, seen, embedding, source)

    def save(self, path: str | os.PathLike) -> None:
        """Write the file; an existing one is replaced only when the new one is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in ("codes", "scale", "components", "anyway")}
        if self.views is not None:
            arrays["views"] = self.views
        metadata = {"format": _FORMAT, "version": _VERSION, "encoder": self.encoder}
        metadata |= {"embedding": self.embedding, "source": self.source}
        temporary = path.with_name(path.name + ".writing")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Plots:
        """Read a file that `save` wrote.

        Raises:
            ModelFolderError: missing, damaged, or something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
                    raise ModelFolderError(f"{path} holds no plots of this version: build them with `{_HOW_TO_BUILD}`.")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            about = {name: metadata[name] for name in ("encoder", "embedding", "source")}
            plots = cls(**arrays, **about)
            plots._check()
            return plots
        except FileNotFoundError:
            raise ModelFolderError(f"There are no plots {path}: build them with `{_HOW_TO_BUILD}`.") from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, ModelFolderError):
                raise
            raise ModelFolderError(
                f"The plots {path} are damaged ({str(error)[:100]}): download or build them again."
            ) from None

    def _check(self) -> None:
        """Raise ValueError unless the arrays fit together."""
        count, sentences, components = self.codes.shape
        fits = (
            count > 0
            and sentences > 0
            and self.scale.shape == (components,)
            and self.components.ndim == 2
            and len(self.components) == components
            and self.anyway.shape == (count,)
            and (self.views is None or (self.views.ndim == 2 and len(self.views) == count))
        )
        if not fits:
            raise ValueError("its parts do not fit together")
        if not all(np.isfinite(array).all() for array in (self.scale, self.components, self.anyway)):
            raise ValueError("its vectors are none")

    def check_encoder(self, fingerprint: str, size: int) -> None:
        """Raise ModelFolderError unless they were built with the encoder of this fingerprint, of D = `size`."""
        if self.encoder != fingerprint or self.components.shape[1] != size:
            raise ModelFolderError(
                f"The plots were built with another encoder ({self.encoder}, not {fingerprint}): build them again with "
                f"this one by `{_HOW_TO_BUILD}`, or remove the file."
            )

    # -- looking things up -------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.codes)

    def thoughts(self, index: int) -> np.ndarray:
        """d of a plot's sentences, float32 [S, D]."""
        return (self.codes[index] * self.scale) @ self.components.astype(np.float32)

    @cached_property
    def _means(self) -> np.ndarray:
        """What each plot is about as a whole, of length 1, float32 [N, K]."""
        return unit_rows((self.codes * self.scale).mean(1))

    def nearest(self, about: np.ndarray, view: np.ndarray | None = None) -> np.ndarray:
        """All plots, those that suit best first [N].

        The cosines are standardized over the plots and added up, and half of what a plot has of that anyway taken off.

        Args:
            about: What the story should be about, less what texts of its kind are about on average [D].
            view: The photo in the joint space of `views` [E]; None goes by `about` alone.
        """
        scores = standardized(self._means @ (self.components.astype(np.float32) @ about))
        if view is not None and self.views is not None:
            scores = scores + standardized(unit_rows(self.views) @ view)
        return np.argsort(0.5 * self.anyway - scores, kind="stable")


def plan(
    plots: Plots, parts: int, about: np.ndarray, view: np.ndarray | None, told: int, seed: int
) -> list[np.ndarray]:
    """The thoughts that `parts` passages follow, [sentences, D] for each.

    Args:
        about, view: See `Plots.nearest`.
        told: Sentences that the story has already: it goes on with a plot it has not followed yet, and with what
            comes after its opening.
        seed: Draws one of the `DRAWN` plots that suit best.
    """
    order = plots.nearest(about, view)
    rng = np.random.default_rng(seed)
    length = plots.codes.shape[1]
    planned: list[np.ndarray] = []
    while len(planned) < parts:
        place = told // length * DRAWN + int(rng.integers(DRAWN))
        thoughts = plots.thoughts(int(order[place % len(order)]))
        planned += in_parts(thoughts[1:] if told and length > 1 else thoughts, min(PARTS, parts - len(planned)))
        told += length
    return planned


def standardized(values: np.ndarray) -> np.ndarray:
    """The same with mean 0 and deviation 1."""
    return (values - values.mean()) / max(float(values.std()), 1e-8)


def in_parts(thoughts: np.ndarray, parts: int) -> list[np.ndarray]:
    """A plot's sentences [S, D] for `parts` passages; one alone tells its beginning, its middle and its end."""
    if parts == 1 and len(thoughts) > 3:
        middle = sorted({0, len(thoughts) // 2, len(thoughts) - 1})
        return [thoughts[middle]]
    # the shorter parts first: a passage that is still too short goes on about the picture, an end should stay one
    return [part[::-1] for part in np.array_split(thoughts[::-1], parts)][::-1]
