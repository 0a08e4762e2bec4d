"""Architectures: one file per paper."""
