"""Gu & Rigazio 2014 (arXiv:1412.5068)."""
