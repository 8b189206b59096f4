"""A blind listening test as a web page, and its scores. Knows no metrics of the other rooms.

design    the sounds of a test, their level and order
ratings   the ratings in SQLite
scores    the paper's Table 2 from the ratings
server    the web app; its page is in static/
"""
