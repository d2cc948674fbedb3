.PHONY: help quality code style test smoke screenshots lower-bounds

PYTHON ?= python

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

quality:  ## Check style and formatting, change nothing
	ruff check .
	ruff format --check .

code:  ## Copy modeling/ into the model folders that carry their own code
	$(PYTHON) -m training.sync_code

style:  ## Mend what ruff can mend
	ruff check --fix .
	ruff format .

test:  ## Run every test that this machine can run
	$(PYTHON) -m pytest

smoke:  ## Open the page in a headless browser, give it a photo, wait for the story
	$(PYTHON) -m tests.smoke

screenshots:  ## Make the pictures of the page that README shows
	$(PYTHON) -m tests.screenshots

LOWER ?= .venv-lower
CORE = $(addprefix tests/test_,import.py captioner.py story_decoder.py skip_thoughts.py pipeline.py loop.py \
	caption_sources.py app.py remote_code.py push_to_hub.py joint_embedding.py retrieval.py)

lower-bounds:  ## Install the oldest versions that requirements.txt allows into a venv of their own and test with them
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/pip install --quiet $$($(PYTHON) tests/support/lower_bounds.py)
	$(LOWER)/bin/python -m pytest -q $(CORE)
