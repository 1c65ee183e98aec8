"""PyTorch: recipes, the state of its optimizers, its parameters and its files.

Reading needs no PyTorch but for `.pt` files, which are read as data alone (`weights_only=True`).
"""

from optchain.interop.torch.export import to_state_dict as to_state_dict
from optchain.interop.torch.files import Checkpoint as Checkpoint
from optchain.interop.torch.files import read as read
from optchain.interop.torch.files import write as write
from optchain.interop.torch.layouts import LAYOUTS as LAYOUTS
from optchain.interop.torch.parameters import load_params as load_params
from optchain.interop.torch.parameters import params_to_state_dict as params_to_state_dict
from optchain.interop.torch.recipes import from_torch as from_torch
from optchain.interop.torch.state import load_state_dict as load_state_dict
from optchain.interop.torch.state import load_with_report as load_with_report
