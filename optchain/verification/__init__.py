"""Presets against the libraries whose numbers they promise, on the machine that this runs on.

Needs no more than what it compares with: Keras, PyTorch, or Optax, which is always there.
"""

from optchain.verification.suite import PEERS as PEERS
from optchain.verification.suite import Case as Case
from optchain.verification.suite import Result as Result
from optchain.verification.suite import cases as cases
from optchain.verification.suite import verify as verify
