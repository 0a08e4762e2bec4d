"""Defenses that change how a model is trained: objectives for the one training loop."""
