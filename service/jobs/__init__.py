"""Work that outlives a request: one runner in each process takes jobs from the store.

A job is a row of the table `jobs` (`service.store.jobs`). `runner` takes it under a `lease`, keeps
the lease alive, and runs the function of its `kind`. A new kind is one module with that function,
and one Kind in the list that a process gives its runner.
"""
