"""Trees: paths, checks, arithmetic that keeps dtypes, norms and safe roots.

Everything that walks a pytree lives here, so that a transformation file shows its rule and little else.

Two rules hold throughout:

- *Narrow leaves* (bfloat16, float16, float8) are widened to float32 for arithmetic; :func:`wide` is the one place
  that does it. It is a no-op on everything else.
- Scalars meet leaves through :func:`cast`, so that `jax_numpy_dtype_promotion="strict"` holds and a float64 rate never
  widens a float32 leaf.
"""

from optchain.core.trees.arithmetic import add as add
from optchain.core.trees.arithmetic import agreement as agreement
from optchain.core.trees.arithmetic import as_arrays as as_arrays
from optchain.core.trees.arithmetic import copy as copy
from optchain.core.trees.arithmetic import difference as difference
from optchain.core.trees.arithmetic import map_unzip as map_unzip
from optchain.core.trees.arithmetic import updates_to as updates_to
from optchain.core.trees.arithmetic import with_own_buffers as with_own_buffers
from optchain.core.trees.arithmetic import zeros_like as zeros_like
from optchain.core.trees.arithmetic import zeros_without as zeros_without
from optchain.core.trees.checks import align as align
from optchain.core.trees.checks import check_arrays as check_arrays
from optchain.core.trees.checks import check_axes as check_axes
from optchain.core.trees.checks import check_leaves as check_leaves
from optchain.core.trees.checks import check_match as check_match
from optchain.core.trees.checks import check_real as check_real
from optchain.core.trees.checks import filled as filled
from optchain.core.trees.checks import map_like as map_like
from optchain.core.trees.checks import of_one_example as of_one_example
from optchain.core.trees.checks import shape_of as shape_of
from optchain.core.trees.checks import trainable as trainable
from optchain.core.trees.checks import with_update as with_update
from optchain.core.trees.dtypes import astype as astype
from optchain.core.trees.dtypes import barrier_if_narrow as barrier_if_narrow
from optchain.core.trees.dtypes import cast as cast
from optchain.core.trees.dtypes import cast_tree as cast_tree
from optchain.core.trees.dtypes import default_float as default_float
from optchain.core.trees.dtypes import dtype_of as dtype_of
from optchain.core.trees.dtypes import floating as floating
from optchain.core.trees.dtypes import increment as increment
from optchain.core.trees.dtypes import is_complex as is_complex
from optchain.core.trees.dtypes import real_dtype as real_dtype
from optchain.core.trees.dtypes import share as share
from optchain.core.trees.dtypes import wide as wide
from optchain.core.trees.dtypes import wide_dtype as wide_dtype
from optchain.core.trees.norms import EXTREMES_SCOPE as EXTREMES_SCOPE
from optchain.core.trees.norms import abs_square as abs_square
from optchain.core.trees.norms import all_usable as all_usable
from optchain.core.trees.norms import centered as centered
from optchain.core.trees.norms import clipped_to as clipped_to
from optchain.core.trees.norms import global_norm as global_norm
from optchain.core.trees.norms import joint_norm as joint_norm
from optchain.core.trees.norms import norm as norm
from optchain.core.trees.norms import norm_of as norm_of
from optchain.core.trees.norms import norms as norms
from optchain.core.trees.norms import root as root
from optchain.core.trees.norms import sum_of_squares as sum_of_squares
from optchain.core.trees.norms import total as total
from optchain.core.trees.paths import Path as Path
from optchain.core.trees.paths import Tree as Tree
from optchain.core.trees.paths import leaves_with_paths as leaves_with_paths
from optchain.core.trees.paths import path_code as path_code
from optchain.core.trees.paths import path_names as path_names
from optchain.core.trees.paths import path_string as path_string
from optchain.core.trees.scaled import Scaled as Scaled
from optchain.core.trees.scaled import decay_rows as decay_rows
from optchain.core.trees.scaled import dense as dense
from optchain.core.trees.scaled import force as force
from optchain.core.trees.scaled import merged as merged
from optchain.core.trees.scaled import multiplied as multiplied
from optchain.core.trees.scaled import rescale as rescale
from optchain.core.trees.scaled import scale as scale
from optchain.core.trees.scaled import scale_each as scale_each
from optchain.core.trees.scaled import scale_leaf as scale_leaf
from optchain.core.trees.scaled import unscaled as unscaled
from optchain.core.trees.scaled import widened as widened
from optchain.core.trees.scaled import zeros_unless as zeros_unless
