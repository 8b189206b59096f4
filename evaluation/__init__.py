"""Evaluation: judges what a bundle generates. Labels enter here, never the generator."""
