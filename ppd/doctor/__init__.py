"""What a bug report needs to know of a machine: versions, engines that would run, CPU, memory, GPU, caches.

Nothing here raises, and nothing that may be broken is imported in this process.
"""
