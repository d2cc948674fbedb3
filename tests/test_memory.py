"""Freed memory goes back to the system."""

import ctypes
import platform
import subprocess
import sys

import pytest

from modeling import memory
from tests.serving import REPOSITORY

# all blocks but the last are freed, and that one keeps glibc from giving the others back by itself
MEASURE = """
import gc, psutil
from modeling.memory import give_back_memory
def resident(): return psutil.Process().memory_info().rss / 2**20
blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
last = blocks[-1]
del blocks
before = resident()
give_back_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_what_is_freed_goes_back():
    pytest.importorskip("psutil")
    said = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert float(said) > 100  # of 190 MiB


@pytest.mark.parametrize("failure", [OSError, AttributeError, TypeError])
def test_other_systems_do_without(monkeypatch, failure):
    def missing(name):
        raise failure

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory._trim.cache_clear()
    try:
        assert memory.give_back_memory() is None and memory._trim() is None
    finally:
        memory._trim.cache_clear()
