"""Sessions: the steps of sequences on a copy (`schedule`), and what outlives the copy (`session`, `policy`)."""
