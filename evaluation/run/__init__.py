"""One evaluation run: sounds and features on disk, and the figures of each row. Knows no report.

feature_cache   embeddings, probabilities, mels and levels of sounds
rows            the samples of each row, and their scores
scores          single figures of a row
sound_cache     sounds of systems
"""
