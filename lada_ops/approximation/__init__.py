"""Dense weight to compressed formats; no training, and no module is known here."""
