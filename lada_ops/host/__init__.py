"""The host: its hardware and packages, files, terminal and cache folder."""
