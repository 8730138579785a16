"""HTTP: each ingress listens itself, and bounds how slowly and how often clients may send.

`listener` opens the port that all ingresses of a machine share; `connection` sets a client's time
limits; `gate` bounds the running requests and drains them at the end; `disconnect` cancels the work
of a client that has left; `error_envelope` is the JSON of every error.
"""
