"""Tables of every kind: files and frames, read, typed, chosen from and written, for training and scoring."""
