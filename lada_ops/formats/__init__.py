"""Formats of a compressed weight: low rank, block sparse (BSR), and their sum.

A format holds tensors and their meaning; it knows no module and no kernel. All shapes are
``(out_features, in_features)``, as in `torch.nn.Linear`.
"""
