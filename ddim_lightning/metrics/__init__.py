"""These numbers say how close two videos are."""
