"""Evaluation of systems on labelled clips. Labels are used here, never in the generator's training.

audio        checks, length and sample rate of sounds
clips        labelled clips
evaluate     `clipsynth evaluate`, the paper's Table 1
interfaces   the interface of systems, and how to load them
plan         queries and seeds
"""
