"""A task for `optchain race`: the autoencoder of handwritten digits, five times as long."""

import dataclasses

from optchain.cli.race.tasks.digits import autoencoder

task = dataclasses.replace(autoencoder(), name="long-autoencoder", steps=2000, target=None)
