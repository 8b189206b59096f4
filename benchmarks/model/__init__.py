"""How fast and how good single parts of the model are.

sampling_cost   what a sound costs, beside the shapes of SpecVQGAN and AudioLDM-S
train_step      how much of the machine a training step uses
vocoder         HiFi-GAN against Griffin-Lim on real mels
prepare         what preparing a clip costs beside a bare decode
correspondence  how well the correspondence score finds exchanged sounds
long_sounds     long sounds, loops, timelines, variations and continuations, by a judge
several_sounds  whether all sounds of a sentence are heard (sentences.json)
video_scenes    whether the scenes of a video are heard
"""
