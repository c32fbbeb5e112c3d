"""One file per point of view on a latent space; each depends only on latents, never on a tokenizer or a generator."""
