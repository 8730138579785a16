"""Certificates: a bound on what a policy delivers, fixed before anybody looks, and its evidence.

`service` is what one does with them. `certificate` is the mathematics: terms, fingerprint, result.
`drawing`, a job, makes the images,
`coverage` knows which requests a passed one covers, `evidence` writes the signed file (`signing`),
and `verification` checks it offline.
"""
