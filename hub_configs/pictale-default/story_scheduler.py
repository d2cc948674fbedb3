"""Stories that are written side by side: one step of the network for all of them, a token for each.

A thread of its own takes in what callers ask for (`Job`), reads prompts a part at a time, and draws the next token of
every continuation, until each has come to its end or its caller has gone. All that belongs to one caller is computed
from the caller's own tokens, seeds and memory, in parts that do not depend on who else is there; so are errors told to
the caller whose job caused them.

Shapes: N rows of a step, n rows of one job, C columns of its memory, V pieces of the vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .errors import StoryError
from .sampling import SamplingOptions
from .story_jobs import PAGE_RUN, Continuation, Job, Row, Trunk, chosen, newest_tokens, noise
from .story_network import Span, StoryNetwork

PROMPT_PART = 64  # tokens of a prompt that are read at once: always the same parts, so that sums are the same
PROMPT_ROWS = 128  # of all prompts in a step: what others wait for
MOST_ROWS = 96  # continuations in a step; with more, jobs take turns
IDLE_SECONDS = 30.0  # after which the thread ends; the next job starts another


@dataclass(frozen=True)
class _Plan:
    """What a job does in a step: tokens to read (or none), and whether they are continuations or of the trunk."""

    job: Job
    ids: list[int]
    start: int = 0  # position of the first, for those of the trunk
    span: Span | None = None
    branches: bool = False


class Scheduler:
    """The jobs of all callers, and the thread that works on them.

    Args:
        network: That reads.
        decode: Text of tokens.
        end: The token that ends a text.
        barred: Tokens that are never written.
        weights: What `presence_penalty` counts a token as [V].
        threads: Of torch, for the whole process; None leaves them as they are.
    """

    def __init__(
        self,
        network: StoryNetwork,
        decode: Callable[[Sequence[int]], str],
        end: int,
        barred: Sequence[int],
        weights: Callable[[], torch.Tensor],
        threads: int | None = None,
    ) -> None:
        self.network, self.decode, self.end, self.threads = network, decode, end, threads
        self._barred = torch.tensor(sorted(barred), dtype=torch.long, device=network.device)
        self._weights = weights
        self._jobs: list[Job] = []
        self._work = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def jobs(self) -> int:
        """How many are worked on."""
        with self._work:
            return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Work on a job from the next step on; one that only reads the same trunk is dropped for it.

        Raises:
            StoryError: the scheduler was closed, or continuations of this trunk are being written.
        """
        with self._work:
            if self._closed:
                raise StoryError("The storyteller was closed: load it again.")
            if any(other.trunk is job.trunk and other.rows for other in self._jobs):
                raise StoryError("This state is being written on: let that come to its end, or close it, first.")
            self._jobs = [other for other in self._jobs if other.trunk is not job.trunk]
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="storyteller", daemon=True)
                self._thread.start()
            self._work.notify_all()

    def drop(self, job: Job) -> None:
        """Stop working on a job."""
        with self._work:
            self._jobs = [other for other in self._jobs if other is not job]

    def forget(self, trunk: Trunk) -> None:
        """Stop working on a trunk, and free its memory (at the end of a step that is under way)."""
        with self._work:
            gone = [job for job in self._jobs if job.trunk is trunk]
            self._jobs = [job for job in self._jobs if job.trunk is not trunk]
        for job in gone:
            job.tell(over=True)

    def close(self, wait: bool = True) -> None:
        """End the thread; whoever waits is told so."""
        with self._work:
            self._closed, jobs, self._jobs, thread = True, self._jobs, [], self._thread
            self._work.notify_all()
        for job in jobs:
            job.tell(error=StoryError("The storyteller was closed while it was writing."))
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def _run(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        while True:
            with self._work:
                if not self._jobs and not self._closed:
                    self._work.wait_for(lambda: self._jobs or self._closed, IDLE_SECONDS)
                if not self._jobs:
                    self._thread = None
                    return
                jobs = self._turn()
            self._step(jobs)

    def _turn(self) -> list[Job]:
        """The jobs of the next step; where not all find room, those that were served go to the end of the line."""
        taken, prompts, branches = [], 0, 0
        for job in self._jobs:
            unread = min(len(job.trunk.ids) - job.trunk.length, PROMPT_PART)
            rows = len(job.going)
            if unread > 0 and not job.branched:
                if prompts and prompts + unread > PROMPT_ROWS:
                    continue
                prompts += unread
            elif branches and branches + rows > MOST_ROWS:
                continue
            else:
                branches += rows
            taken.append(job)
        if len(taken) < len(self._jobs):
            self._jobs = [job for job in self._jobs if job not in taken] + taken
        return taken

    def _step(self, jobs: list[Job]) -> None:
        """One token for each continuation; if that fails, job by job, so that only the guilty are told."""
        try:
            self._advance(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._finish(jobs[0], in_words(error))
                return
            for job in jobs:
                self._step([job])

    def _advance(self, jobs: list[Job]) -> None:
        """Read and draw; nothing of a job is changed before all that may fail for all is done."""
        plans = [self._plan(job) for job in jobs]
        states = self._read([plan for plan in plans if plan.span is not None])
        heads, drawing, tips, start = [], [], {}, 0
        for plan in plans:
            job, own = plan.job, states[start : start + len(plan.ids)]
            start += len(plan.ids)
            rows = job.going
            if not plan.branches:
                tip = job.trunk.tip
                if plan.ids:
                    whole = job.trunk.length + len(plan.ids) == len(job.trunk.ids)
                    tip = tips[id(job)] = own[-1].clone() if whole else None
                if tip is None or not rows:
                    continue
                own = tip.expand(len(rows), -1)
            heads.append(own)
            drawing += [(job, row) for row in rows]
        drawn = self._draw(self.network.logits(torch.cat(heads)), drawing) if heads else []
        for plan in plans:
            self._commit(plan, tips.get(id(plan.job)))
        failed: dict[int, Exception] = {}
        for (job, row), (token, log_prob) in zip(drawing, drawn, strict=True):
            try:
                if id(job) not in failed:
                    self._write(job, row, token, log_prob)
            except Exception as error:  # of the caller's `until`
                failed[id(job)] = error
        for job in jobs:
            if id(job) in failed:
                self._finish(job, failed[id(job)])
            elif not job.going and len(job.trunk.ids) == job.trunk.length:
                self._finish(job)
            else:
                job.tell()

    def _plan(self, job: Job) -> _Plan:
        trunk, going = job.trunk, job.going
        if trunk.memory is None:
            trunk.memory = self.network.memory()
        memory = trunk.memory
        if not job.begun:  # forget other continuations
            memory.keep(trunk.length, trunk.kept)
            trunk.length, trunk.kept, job.begun = memory.length, [], True
        if not job.branched:
            ids = trunk.ids[trunk.length : trunk.length + PROMPT_PART]
            if not ids:
                return _Plan(job, ids)
            mask = None
            if len(ids) > 1:
                mask = torch.zeros(len(ids), trunk.length + len(ids))
                mask[:, trunk.length :] = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
            return _Plan(job, ids, trunk.length, Span(memory, len(ids), mask))
        mask = None
        if len(job.rows) > 1:
            mask = torch.full((len(going), memory.length + len(going)), -torch.inf)  # [n, C]
            mask[:, : trunk.length] = 0
            for place, row in enumerate(going):
                mask[place, [*row.columns, memory.length + place]] = 0
        return _Plan(job, [row.now.ids[-1] for row in going], span=Span(memory, len(going), mask), branches=True)

    def _read(self, plans: Sequence[_Plan]) -> torch.Tensor:
        """What the network makes of the tokens of all plans [N, H]."""
        ids, positions, spans = [], [], []
        for plan in plans:
            ids += plan.ids
            spans.append(plan.span)
            if plan.branches:
                positions += [plan.job.trunk.length + len(row.columns) for row in plan.job.going]
            else:
                positions += range(plan.start, plan.start + len(plan.ids))
        return self.network.read(ids, positions, spans) if ids else torch.empty(0)

    def _commit(self, plan: _Plan, tip: torch.Tensor | None) -> None:
        """Take what was read as read."""
        trunk = plan.job.trunk
        if plan.branches:
            for place, row in enumerate(plan.job.going):
                row.columns.append(trunk.memory.length + place)
        elif plan.ids:
            trunk.length += len(plan.ids)
            trunk.tip = tip
        trunk.memory.length += len(plan.ids)

    def _draw(self, logits: torch.Tensor, drawing: Sequence[tuple[Job, Row]]) -> list[tuple[int, float]]:
        """A token for each row of logits [N, V], with its log-probability under the model."""
        raw = logits.log_softmax(-1)
        scores = raw.clone()
        scores[:, self._barred] = -torch.inf
        alike: dict[SamplingOptions, list[int]] = {}
        for place, (job, row) in enumerate(drawing):
            self._bar(scores[place], job, row)
            alike.setdefault(job.options, []).append(place)
        tokens = torch.empty(len(drawing), dtype=torch.long, device=raw.device)
        for options, places in alike.items():
            numbers = [noise(*drawing[place]) for place in places]
            where = torch.tensor(places, device=raw.device)
            tokens[where] = chosen(scores[where], torch.tensor(numbers, device=raw.device), options)
        log_probs = raw.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return list(zip(tokens.tolist(), log_probs.tolist(), strict=True))

    def _bar(self, scores: torch.Tensor, job: Job, row: Row) -> None:
        """Lower, in place, the scores [V] of what is not to be written."""
        options, told, new = job.options, job.trunk.told, row.now.ids
        if not job.may_end or len(told) + len(new) < options.min_new_tokens:
            scores[self.end] = -torch.inf
        if options.presence_penalty and (told or new):
            ids = torch.tensor([*told, *new], device=scores.device)
            scores.index_add_(0, ids, -options.presence_penalty * self._weights().to(scores.device)[ids])
        for size, runs in (
            (PAGE_RUN, (job.trunk.page_runs,)),
            (options.no_repeat_ngram_size, (job.told_runs, row.runs)),
        ):
            if size < 1:
                continue
            last = tuple(newest_tokens(told, new, size - 1))
            for known in runs:
                if found := known.get(last):
                    scores[found] = -torch.inf

    def _write(self, job: Job, row: Row, token: int, log_prob: float) -> None:
        """Put a token behind a continuation. What the caller's `until` raises is raised."""
        before = row.now
        log_probs = (*before.log_probs, log_prob)
        if token == self.end:
            row.now = replace(before, log_probs=log_probs, ended="end")
            return
        ids = (*before.ids, token)
        size = job.options.no_repeat_ngram_size
        run = newest_tokens(job.trunk.told, ids, size) if size > 0 else []
        if size > 0 and len(run) == size:
            row.runs.setdefault(tuple(run[:-1]), []).append(token)
        text = self.decode(ids).rstrip("\ufffd")  # half a character waits for its other half
        row.now = Continuation(ids, text, log_probs)
        if job.until is not None and job.until(text):
            row.now = replace(row.now, ended="stop")
        elif len(ids) >= job.most:
            row.now = replace(row.now, ended="length")

    def _finish(self, job: Job, error: Exception | None = None) -> None:
        self.drop(job)
        job.tell(over=True, error=error)


def in_words(error: Exception) -> Exception:
    """Memory that does not suffice as a sentence; other errors as they are."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
        return StoryError("There is not enough memory to write so many stories at once: try again later.")
    return error
