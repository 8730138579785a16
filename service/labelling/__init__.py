"""What people's labels become: which image to show next, and trained rewards.

`service` chooses what people are asked: `selection` says what to show, `drawable_inputs` under
which inputs, and a `label_batch` holds it. `reward_training` is the job that makes a reward of a
dataset's labels (`stored_examples`) by a `recipe`: `training` makes judge (`judge_training`) and
guides, with thresholds (`calibration`) on fresh draws (`unlabelled_pool`) of the conditions that
the model accepts (`accepted_conditions`), and a `reward_card` for people.
"""
