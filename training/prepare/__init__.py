"""Turn videos into shards of features; knows neither recipes nor networks in training.

prepare.py       Prepare a folder, or merge prepared parts.
sources.py       Find the videos, or those in a data set's list.
windows.py       Decode a video and cut it into windows, in a process of its own.
features.py      Prepare one video.
process_pool.py  Run a function in several processes.
folder.py        The files of a prepared folder.
finish.py        Pack shards, and write index and report.
statistics.py    Exact sums for the statistics.
duplicates.py    Find near-duplicates by sound.
"""
