"""Certificates: a bound on what a policy delivers, fixed before anybody looks, and its evidence.

`certificate` is the mathematics: terms, fingerprint, result. `drawing` makes the images,
`certified` knows which requests a passed one covers, `evidence` writes the signed file (`signing`),
and `verification` checks it offline.
"""
