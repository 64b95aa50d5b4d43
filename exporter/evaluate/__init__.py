"""`exporter evaluate` and `exporter compare`: how good the lists of a bundle are, as a worker makes them.

served (a worker on a log in memory) -> protocols (which lists, and what they should have held) -> ranking, exposure,
calibration, slices (figures) -> bootstrap (intervals) -> report -> page (HTML, with figures from svg).
"""
