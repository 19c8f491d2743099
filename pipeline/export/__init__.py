"""Models that leave the house: files that need nothing of ours to be used, checked against what they were made from."""
