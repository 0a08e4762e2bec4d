"""Records, their store, and the statistics derived from them. Never imports torch."""
