"""Clips in and out: video files, manifests, trajectories on disk and the procedural world of shapes."""
