"""Train the baseline SpecVQGAN; knows nothing of the vocoder's training.

train.py        Run the stages.
codec.py        Train the codec.
transformer.py  Train the transformer.
"""
