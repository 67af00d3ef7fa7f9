"""Clips are read from video files and manifests, and written to video files."""
