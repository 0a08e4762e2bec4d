"""Srinivasan et al. 2018 (arXiv:1805.12017)."""
