"""The results as text and as a page. Computes no figures, except for the memorisation test.

html           one self-contained page with players
memorisation   distances to training clips against those of unseen recordings
table          Markdown tables and results.json
"""
