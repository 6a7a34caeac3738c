"""The ops, one file each: checks, `torch.ops.lada.<stem>`, CPU and CUDA bodies, fake, autograd."""
