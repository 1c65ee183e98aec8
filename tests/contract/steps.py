"""Running a transformation, and comparing what came out: that of `optchain.testing`."""

from optchain.testing.steps import STEPS as STEPS
from optchain.testing.steps import apply_step as apply_step
from optchain.testing.steps import assert_close as assert_close
from optchain.testing.steps import assert_same as assert_same
from optchain.testing.steps import avals as avals
from optchain.testing.steps import run as run
from optchain.testing.steps import update_step as update_step
