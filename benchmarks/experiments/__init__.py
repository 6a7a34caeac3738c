"""What was tried and is not part of the package, each with its verdict."""
