"""The Belady oracle: what the best possible eviction, and every other one, would have found on the same accesses.

accesses    the log of what calls read, write, hold and leave
future      when each block is read next
blocks      replay under an order of blocks: belady, lru, flat-lru
segments    replay on a tree of segments, under the rules of rules
scored      replay under an eviction policy of the engine
study       every policy at every memory size, as rows
formats     the log for libCacheSim, and its traces as logs
output, options, command, page      tables, figures, the command, docs/oracle.md
"""
