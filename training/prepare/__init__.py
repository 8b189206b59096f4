"""Turn videos into shards of features; knows neither recipes nor networks in training.

prepare.py       Prepare a folder: shards, index, statistics, report.
sources.py       Find the videos, or those in a data set's list.
windows.py       Cut videos into windows.
duplicates.py    Find near-duplicates by sound.
process_pool.py  Make shards in several processes.
"""
