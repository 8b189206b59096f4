"""The training clips of a bundle: to play them, and to find copies of them.

clip_index.py     Index: embeddings and metadata of the clips.
clip_audio.py     The sounds of the clips.
copy_distance.py  How far a sound is from the most similar clip.
thumbnails.py     Small log-mels that an index keeps.
sounds.py         Names for the training clips.
"""
