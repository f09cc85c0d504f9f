"""How it is measured: a file for each protocol. `hf_ssl.evaluation` has their public names."""
