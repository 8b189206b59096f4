"""How the API answers hostile and broken requests: `make fuzz`.

__main__      the command line
mutations     broken requests, each a function of a seed and a number; corpus.json
videos        broken videos
wire          sends them over plain sockets and checks the answers
schema        requests that schemathesis derives from the OpenAPI document
schema_hooks  what schemathesis loads
"""
