"""What a latent space will ask of a generator, measured on any tokenizer: ``python -m latent_report TOKENIZER ...``."""
