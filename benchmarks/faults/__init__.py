"""What goes wrong, done on purpose: processes killed, disks full, files damaged, settings and numbers out of range.

`python -m benchmarks.faults` runs every module and prints how many of its cases came out as they should.
"""
