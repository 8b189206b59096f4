"""Embedders: sounds as vectors, for distances and class accuracy. Knows no systems and no table.

base           the interface and the built-in embedders
clap           CLAP from a local folder
classifier     the judge: a classifier of labelled sounds, and its folder
exported       any network saved with `torch.export`
linear_judge   a second judge on the vectors of an embedder
mel_images     networks over mel spectrograms as images, for FID
yamnet         YAMNet from a local file
"""
