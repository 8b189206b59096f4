"""Train the vocoder on the clips' sound, then on mels of the denoiser.

train.py            Train with spectral and adversarial losses.
discriminators.py   Discriminators and their losses.
generated_mels.py   Mels made by the denoiser.
networks.py         The networks of both architectures.
istft.py            The parts and the step of the iSTFT vocoder.
energy_distance.py  Its loss: a spectral energy distance.
"""
