"""These callbacks of a Trainer show progress, measure a run, and draw sheets while a model trains."""
