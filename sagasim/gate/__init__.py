"""Has anything become worse? A small fixed set of runs, compared with a baseline file.

cases     a set: configurations of `sagasim run`, seeds, metrics with their better direction
measure   its runs and their twins, side by side; tolerances from the paired variance over seeds
baseline  the file: written, read and checked
judge     what moved, by how much, and whether that is worse
output    as text, JUnit XML and annotations of GitHub
"""
