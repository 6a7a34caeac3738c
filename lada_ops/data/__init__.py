"""Text files and labelled tasks: readers, tokenized examples, metrics."""
