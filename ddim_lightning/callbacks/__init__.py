"""Callbacks of a Trainer that show progress, measure a run, and draw sheets while a model trains."""
