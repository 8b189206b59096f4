"""Files of videos and of features.

images.py  Turn decoded frames into upright images with square pixels and standard range.
shards.py  Read and write tar files of features.
tracks.py  Choose streams, and place sound by its timestamps.
video.py   Read sound and frames of a video.
"""
