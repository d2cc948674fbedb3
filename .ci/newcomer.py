"""Do what README tells somebody to do who has just come: its two commands, word for word, where nothing is prepared.

    python .ci/newcomer.py PASSED

The commit is cloned into a folder of its own, with an environment in which nothing is installed yet, empty caches and
no data beside it. The first command must bring up a page that tells a story; the second must end with exit code 0, and
the tests that passed are written into PASSED. The folder has a space and an umlaut in its name, as folders of people
have; in one without, the rest of `.ci/run` goes on. Needs Python and git.
"""

import json
import os
import queue
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = "Bücher und Bilder"
BEGINNING = "    pip install -r requirements.txt && "
PATIENCE = 900  # seconds until the page is up, installing included
PREPARED = ("PICTALE_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "GRADIO_", "OMP_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")
TELL = """
import json, sys
from gradio_client import Client, handle_file
told = Client(sys.argv[1], verbose=False).predict(handle_file(sys.argv[2]), "mystery", 7, api_name="/tell")
print(json.dumps(told["story"]))
"""


def clone(folder: Path) -> Path:
    """The commit that is checked out here, as anybody gets it."""
    git = ["git", "-c", "safe.directory=*"]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], cwd=REPOSITORY, text=True).strip()
    subprocess.run([*git, "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(folder)], check=True)
    subprocess.run([*git, "checkout", "--quiet", "--detach", commit], cwd=folder, check=True)
    print(f"commit {commit[:7]} in {folder}", flush=True)
    return folder


def new_environment(place: Path) -> dict[str, str]:
    """The variables of somebody who has set none, in a virtual environment without packages."""
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREPARED) and name != "CI"}
    return kept | {
        "PATH": f"{place / 'venv' / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "XDG_CACHE_HOME": str(place / "cache"),
        "PIP_QUIET": "1",  # a log that is read by people
        "PYTHONUNBUFFERED": "1",  # what the page says is read while it runs
    }


def commands(readme: Path) -> tuple[str, str]:
    """README's line for the page and its line for the tests."""
    lines = [line.strip() for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith(BEGINNING)]
    if len(lines) != 2 or "app.py" not in lines[0] or "pytest" not in lines[1]:
        raise SystemExit(f"README is to have two lines that begin with '{BEGINNING.strip()}', but it has {lines}.")
    return lines[0], lines[1]


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long it took, and how long processors worked on it."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {time.monotonic() - start:.0f} s, of processors {worked:.0f} s", flush=True)


@contextmanager
def page(command: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run the command until the page says where it is; yields the address and ends all that the command started."""
    server = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in server.stdout:
            print(f"    {line}", end="", flush=True)
            said.put(line)
        said.put(None)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield address(said)
    finally:
        for stop, seconds in ((signal.SIGINT, 20), (signal.SIGKILL, None)):
            if server.poll() is None:
                os.killpg(server.pid, stop)
            try:
                server.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        listener.join()


def address(said: "queue.Queue[str | None]") -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            line = said.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise SystemExit(f"The page was not up after {PATIENCE} seconds.") from None
        if line is None:
            raise SystemExit("The command for the page ended before the page was up.")
        if "http://" in line and "local URL" in line:
            return line[line.index("http://") :].strip()


def tell(url: str, folder: Path, environment: dict[str, str]) -> None:
    """Look at the page, and have a story told about an example photo."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        if "Pictale" not in answer.read().decode():
            raise SystemExit(f"What answers on {url} is not the page.")
    photo = folder / "hub_configs" / "pictale-default" / "examples" / "dog.jpg"
    program = [str(Path(environment["PATH"].split(os.pathsep)[0]) / "python"), "-c", TELL, url, str(photo)]
    story = json.loads(subprocess.check_output(program, env=environment, text=True, timeout=300))
    print(f"    {story}", flush=True)
    if len(story.split()) < 10:
        raise SystemExit("The page told no story.")


def main() -> int:
    passed = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory(prefix="pictale-") as temporary:
        place = Path(temporary) / FOLDER
        place.mkdir()
        folder, environment = clone(place / "pictale"), new_environment(place)
        for_page, for_tests = commands(folder / "README.md")
        print(f"$ {for_page}", flush=True)
        with timed("page"), page(for_page, folder, environment) as url:
            tell(url, folder, environment)
        print(f"$ {for_tests}", flush=True)
        environment["PYTEST_ADDOPTS"] = shlex.join(["-rs", f"--passed-to={passed}"])  # beside the command, not in it
        with timed("tests"):
            tests = subprocess.run(["bash", "-c", for_tests], cwd=folder, env=environment, stdin=subprocess.DEVNULL)
        if tests.returncode:
            print(f"README's test command ended with exit code {tests.returncode}.")
        return tests.returncode


if __name__ == "__main__":
    raise SystemExit(main())
