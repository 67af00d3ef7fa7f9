"""Models are found, checked and loaded with diffusers and transformers."""
