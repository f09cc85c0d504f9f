.PHONY: help format lint test proofs

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

format:  ## Format the code
	ruff format . && ruff check --fix .

lint:  ## Check format and style
	ruff format --check . && ruff check .

test:  ## Run the tests
	pytest

proofs:  ## Run the slow proofs: every method beats its random initialisation
	pytest -m slow
