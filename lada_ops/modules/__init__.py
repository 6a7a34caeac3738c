"""`torch.nn` modules that hold a compressed weight, one file each."""
