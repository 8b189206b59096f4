"""Read prepared clips and make the denoiser's batches; knows no network in training.

clips.py             Read clips from shards.
index.py             Open the index of many clips.
remote.py            Read clips from object storage through a cache on the node.
batches.py           Draw and make batches.
density.py           Weights against the density of images.
waveforms.py         Waveforms on a device, and mels made from them.
attribute_labels.py  Labels of attributes and correspondence.
augment_mel.py       Vary clips on their log-mels.
augment_waveform.py  Vary clips on their waveforms.
"""
