"""The engine is a loaded model and what it does, without Lightning."""
