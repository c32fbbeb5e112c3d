"""What shapes the latents of a tokenizer in training: one objective per module, combined by `latentlab.tokenizers.losses`."""
