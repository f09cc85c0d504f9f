"""The scripts, which an installed package has as `hf_ssl.scripts`; `hf-ssl` runs them."""
