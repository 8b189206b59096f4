"""Files of videos and of features.

video.py   Read sound and frames of a video.
shards.py  Read and write tar files of features.
"""
