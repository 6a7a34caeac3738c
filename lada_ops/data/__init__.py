"""Labelled tasks: their files, their scores, and what a model must be to do them."""
