"""One file per figure: each has one function ``draw(...)`` from tables and arrays to a figure, and computes nothing."""
