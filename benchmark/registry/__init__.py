"""Names resolved to components, and what names and identifies them in a key."""
