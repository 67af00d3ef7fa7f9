"""The world of the bundled model is here: clips of moving shapes, and how the model was trained."""
