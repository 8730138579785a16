"""A Ray cluster of one machine, for the time of one service: started, supervised, ended.

`supervisor` is the process that the user started. It forks the server, which starts Ray and Serve
(`node`), and whatever becomes of the server, it ends every process below itself and clears the
`run_folder`, in which all of them write. `reaper` ends them where the supervisor itself was killed.
`ray_environment` are Ray's settings. `preflight` checks all that can be checked before a start, and
`hardware` the resources of this machine.
"""
