"""The output folder of a run is kept here: whose it is, what is in it, and how a clip's folder gets its place."""
