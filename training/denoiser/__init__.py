"""Train the denoiser and distil its guidance; knows nothing of the vocoder's training.

train.py                  Train with rectified flow.
flow_matching.py          The untrained parts and the loss.
guidance_distillation.py  Distil guidance into one pass.
validation.py             Dev loss, and samples for TensorBoard.
cuda_graphs.py            Record and replay a step.
adapt.py                  Move a trained denoiser to another encoder.
"""
