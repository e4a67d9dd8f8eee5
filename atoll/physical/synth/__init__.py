"""Data synthesis: experts, demonstrations made many, annotated pictures, data sets with a card."""
