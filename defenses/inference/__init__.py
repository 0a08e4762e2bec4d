"""Defenses that change what a model sees at test time."""
