"""The world of the bundled model: clips of moving shapes, and how the model was trained."""
