"""Who may call, and which URLs may be called.

api_keys.py   API keys in Redis.
safe_http.py  Requests to URLs that clients name.
headers.py    Security headers for browsers.
"""
