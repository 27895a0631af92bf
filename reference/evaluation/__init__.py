"""Measurements of quality: a small image-text dual encoder, and the table of retrieval and Fréchet distances."""
