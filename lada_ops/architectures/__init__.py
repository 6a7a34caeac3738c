"""Hugging Face's encoders: names of their linears, submodules of their layers."""
