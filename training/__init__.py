"""From a folder of videos to a bundle: prepare, train vocoder, train denoiser, export."""
