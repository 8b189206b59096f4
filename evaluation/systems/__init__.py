"""Systems under evaluation: implementations of `evaluation.interfaces.Synthesizer`. Knows no metrics.

bundle       our bundles, and their vocoder alone
external     an HTTP service, and a folder of sounds
recordings   the real clips
retriever    the nearest training clip
specvqgan    the SpecVQGAN baseline
"""
