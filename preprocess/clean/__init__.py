"""`preprocess clean`: what of a data set is doubtful, and why. Nothing is deleted; a new version may leave it out."""
