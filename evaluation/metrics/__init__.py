"""Metrics over embeddings and class probabilities, as arrays. Knows no systems, files or sounds.

bootstrap          figures with intervals, their differences and gaps
class_accuracy     how often the judge hears the wanted class
density_coverage   density and coverage (Naeem et al. 2020)
frechet            FAD, FID, and FAD extrapolated to infinitely many clips
kernel             KAD, a kernel distance
"""
