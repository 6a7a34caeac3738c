"""`torch.nn` modules with a compressed weight, one file each."""
