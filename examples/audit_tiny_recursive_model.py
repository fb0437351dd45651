"""Audit a model of the package tiny-recursive-model: what do more deep refinements do than it was trained with?"""

import torch
from tiny_recursive_model import MLPMixer1D, TinyRecursiveModel

import homeostat as hs
from homeostat.models.adapters import tiny_recursive_model

torch.manual_seed(0)
net = TinyRecursiveModel(dim=16, num_tokens=10, network=MLPMixer1D(dim=16, depth=1, seq_len=24))
# Here: net.load_state_dict(torch.load("weights.pt", weights_only=True)). Without it the weights are random.
tokens = torch.randint(10, (32, 24))
examples = {"24 tokens": [(tokens, tokens.flip(1))]}  # batches (inputs, targets) by the name of their difficulty
audit = hs.audit(tiny_recursive_model(net, trained_steps=12), examples, steps=[1, 3, 6, 12, 24])
print(audit)
