.PHONY: help format lint test docs pages proofs browser gpu conformance

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

format:  ## Format the code
	ruff format . && ruff check --fix .

lint:  ## Check format and style
	ruff format --check . && ruff check .

test:  ## Run the tests
	pytest -n auto --dist loadfile

docs:  ## Build the documentation in docs/_build/html
	sphinx-build -W --keep-going -b html docs docs/_build/html

pages:  ## Build the site, run every command that README, docs and scripts print, on small data
	pytest tests/test_pages.py tests/test_docs.py -m "pages or not pages" -rP

proofs:  ## Run the slow proofs: every method beats its random initialisation
	pytest -m slow

browser:  ## Run the tests that click in a Chromium
	pytest -m browser

gpu:  ## Run the tests that want a GPU, and write outputs/gpu_steps.md
	pytest tests/gpu

conformance:  ## Run transformers' own common tests, from its source archive, against our classes
	python tests/conformance/run.py
