"""Data sets: demonstrations, and annotated pictures."""
