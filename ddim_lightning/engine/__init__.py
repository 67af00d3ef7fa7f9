"""A loaded model and what it does, without Lightning."""
