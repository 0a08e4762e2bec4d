"""Sections drawn from records, and the Markdown and HTML renderers. Never imports torch."""
