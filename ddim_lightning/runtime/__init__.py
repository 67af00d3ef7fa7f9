"""Speed and measurement, applied from outside to a model that is already right."""
