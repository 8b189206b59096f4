"""Audio maths: waveforms and mels. Knows nothing of prompts.

mel.py          The only definition of the mel.
vocoder.py      Log-mels to waveforms, and mixing.
istft_vocoder.py  A vocoder at the mel frame rate, with its own noise and tones.
corrections.py  Harmonics, noise texture and mel correction of a vocoder's output.
level.py        Level and length of waveforms.
continuation.py  Join a waveform and its continuation.
attributes.py   Loudness, brightness, pitch, noisiness and density of a sound.
"""
