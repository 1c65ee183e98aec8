"""What every parity test needs; the runs and the measure are those of `optchain verify`."""

import hypothesis

from optchain.verification.keras_peer import precision as precision
from optchain.verification.runs import BOUNDS as BOUNDS
from optchain.verification.runs import FORMS as FORMS
from optchain.verification.runs import SHAPES as SHAPES
from optchain.verification.runs import Tree as Tree
from optchain.verification.runs import random_grads as random_grads
from optchain.verification.runs import random_params as random_params
from optchain.verification.runs import run as run
from optchain.verification.runs import run_forms as run_forms
from optchain.verification.runs import worst_error as worst_error

# An example compiles two or three programs, so a tenth of the examples of the profile.
few = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 10)
# For rules of which others share most: arguments that all presets have are drawn often enough elsewhere.
fewer = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 25)

DTYPES = ["float32", "float64"]
