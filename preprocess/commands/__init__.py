"""The commands of `preprocess`, one a module: their options and help. `preprocess.cli` puts them together."""
