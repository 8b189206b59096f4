"""From the body of a request to a job in the queue. Knows no model and no worker.

body.py    JSON and form bodies, validated.
images.py  Images of a request, checked and re-encoded.
submit.py  Defaults and limits of the model, idempotency, admission, submission.
"""
