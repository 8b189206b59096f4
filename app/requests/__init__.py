"""From the body of a request to a job in the queue. Knows no model and no worker.

body.py          JSON and form bodies, validated.
video.py         A video of a form, on disk, and copied without its sound in a child process.
upload.py        Bodies on their way in: budgets, and files for large ones.
decode_image.py  Decode one image; runs in a limited child process.
images.py        Images of a request, checked and re-encoded.
texts.py         Texts as the model can read them.
recipe.py        Requests from recipes: replays, variations, continuations.
conditions.py    Prompts as a worker understands them, and as a payload holds them.
submit.py        Defaults and limits of the model, idempotency, admission, submission.
"""
