"""Bodies and headers of responses.

accept.py    Media types by an Accept header.
problems.py  Errors as problem+json, and their HTTP status.
audio.py     Choose an output's file and send it.
ranges.py    ETag, conditional and Range requests.
"""
