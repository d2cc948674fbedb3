"""Our own lines call nothing that a library has announced to take away."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PROGRAM = """
import sys, warnings

seen = []
ours = ("/modeling/", "/training/", "/app.py", "/transformers_modules/")


def note(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
        if any(part in filename for part in ours):
            seen.append(f"{filename}:{lineno}: {category.__name__}: {message}")


warnings.simplefilter("always")
warnings.showwarning = note
import pkgutil, importlib, tempfile
import modeling, training
for package in (modeling, training):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("__main__", "hub_trial"):
            importlib.import_module(f"{package.__name__}.{module.name}")
import app
from pathlib import Path
from PIL import Image
from tests.tiny import save_tiny_pipeline
from modeling import StoryPipeline
with tempfile.TemporaryDirectory() as place:
    pipe = StoryPipeline.from_pretrained(save_tiny_pipeline(Path(place)))
    photo = Image.linear_gradient("L").convert("RGB")
    story = pipe.start_story(photo, style="romance", seed=1)
    pipe.continue_story(story, sentence="Then it rained.")
    pipe.save_pretrained(Path(place) / "saved")
from transformers import pipeline
pipeline("image-captioning", model="hub_configs/tiny-captioner", trust_remote_code=True)([photo] * 2, batch_size=2)
print("\\n".join(seen))
"""


@pytest.mark.slow
def test_no_warning_blames_our_code():
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == ""
