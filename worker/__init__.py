"""The worker: a loaded model that claims jobs and writes sounds to storage. It knows no HTTP.

main.py            One process: load, announce, work until SIGTERM, reload on SIGHUP.
engine.py          Continuous batching: many jobs share one network call per step.
job_runner.py      One job: payload in, files and final state out.
model_protocol.py  The interface of a model to the worker.
predictor.py       This interface on a loaded bundle.
calibration.py     The measured cost of a step, and the batch limit.
output_files.py    Audio, spectrogram and peaks as files.
video.py           The scenes of a video, and the video with a sound.
metrics.py         Prometheus metrics.

understanding/  How the model understands prompts.
rq_adapter/     Jobs from RQ.
"""
