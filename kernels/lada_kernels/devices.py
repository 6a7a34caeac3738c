"""Names of devices as file names; needs no Triton."""

import functools
import re

import torch


def slug(name: str) -> str:
    """A device's name as a file name: ``NVIDIA_H200`` for "NVIDIA H200"."""
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b", " ", name, flags=re.IGNORECASE)
    return "_".join(re.findall(r"[A-Za-z0-9]+", name))


@functools.cache
def gpu_slug(index: int) -> str:
    """`slug` of the GPU with this index, asked for once."""
    return slug(torch.cuda.get_device_name(index))
