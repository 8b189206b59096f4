"""Measurements and stress tests, a room for each kind of question. Figures are in README.md.

attack/ whether one API key can use up what all share
chaos/  is anything lost when workers, Redis or the network fail, or during an upgrade
fuzz/   how the API answers broken and hostile requests
load/   how fast the service is, and what it costs
model/  how fast and how good single parts of the model are
"""
