"""Score how well sounds fit images, without labels; knows nothing of the denoiser.

score.py     Write `agreement.json`.
network.py   Features of sounds, and the network learned from the pairs.
mismatch.py  Exchange sounds between clips, to test the scores.
"""
