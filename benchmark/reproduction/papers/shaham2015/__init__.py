"""Shaham et al. 2015 (arXiv:1511.05432)."""
