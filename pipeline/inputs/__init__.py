"""What an evaluation starts from: models and test sets of any kind, opened."""
