"""Roth et al. 2018 (arXiv:1805.08736)."""
