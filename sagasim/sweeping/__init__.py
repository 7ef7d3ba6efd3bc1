"""Many runs, their results kept one by one: a grid or a list over any key of the configuration, with several seeds.

spec      what a file asks for, spread out
points    each of it resolved, under a hash of all that determines its result
worker    one point, in whatever process
local, on_ray    where workers are; interrupts: Ctrl-C while they start
store     the folder: a lock, a file for each point, written whole or not at all
table     the results as one table
report    what it says
runner    run_sweep and merge_sweeps put these together
"""
