"""Templates of model cards and recorded results, which an installed package has as `hf_ssl.model_cards`."""
