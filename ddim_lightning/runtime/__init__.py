"""Speed and measurement are applied from outside to a model that is already right."""
