"""The benchmark measures what it says, on a pipeline without trained weights."""

from PIL import Image

from tests.tiny import tiny_pipeline
from training.benchmark import benchmark


def test_figures_are_positive_and_ordered(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.jpg")
    figures = benchmark(tiny_pipeline(), sorted(tmp_path.glob("*.jpg")), "romance")
    assert all(value > 0 for value in figures.values())
    assert figures["hundred_words_s"] <= figures["hundred_words_worst_s"]
