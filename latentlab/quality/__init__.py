"""How good images are: reconstructions against originals, and generated sets against real ones."""
