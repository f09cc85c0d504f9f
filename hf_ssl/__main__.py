"""`python -m hf_ssl` is the command `hf-ssl`."""

from .cli.main import main

main()
