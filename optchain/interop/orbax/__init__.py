"""Checkpoints by Orbax, of any state: saved whole or not at all, restored although the chain has changed."""

from optchain.interop.orbax.checkpoints import Checkpoint as Checkpoint
from optchain.interop.orbax.checkpoints import DamagedCheckpointError as DamagedCheckpointError
from optchain.interop.orbax.checkpoints import described as described
from optchain.interop.orbax.checkpoints import latest as latest
from optchain.interop.orbax.checkpoints import read as read
from optchain.interop.orbax.checkpoints import restore as restore
from optchain.interop.orbax.checkpoints import save as save
from optchain.interop.orbax.checkpoints import steps as steps
