"""Systems under evaluation: implementations of `evaluation.interfaces.Synthesizer`. Knows no metrics.

bundle       our bundles, and their vocoder alone
external     a folder of sounds made elsewhere
recordings   the real clips
retriever    the nearest training clip
service      an HTTP service
specvqgan    the SpecVQGAN baseline
"""
