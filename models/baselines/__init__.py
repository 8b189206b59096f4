"""Other systems of the paper's tables.

specvqgan.py         SpecVqganPipeline.
mel_codec.py         Its VQ-GAN: a mel to codes and back.
code_transformer.py  Its transformer over codes.
wav2clip.py          Wav2CLIP's sound encoder.
"""
