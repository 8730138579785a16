"""What people's labels become: which image to show next, and trained rewards.

`desk` chooses what people are asked and runs trainings, which `worker` takes from the queue.
`selection` says what to show; `training` makes judge and guides, with thresholds (`calibrating`) on
fresh draws (`pool`), and a `card` for people.
"""
