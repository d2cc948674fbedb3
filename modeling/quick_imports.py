"""Imports that take less time. Nothing but the standard library here: it is used before anything else is imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collect no garbage meanwhile.

    gradio, torch and transformers make very many objects that stay. The collector looks through them again and again as
    they grow more: without it their imports took 11 to 14 % less processor time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
