"""LayerCAM written out from the papers, in float64, for one utterance: it shares no code with the packages under test.

It takes nothing from them but the weights, by the names that WeSpeaker gives them, and its features come from
kaldi-native-fbank.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Weights = dict[str, torch.Tensor]


def layercam(
    weights: Weights, features: NDArray[np.float64], target: int | None, reference: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Logits, and the maps: at the input of each stage's last block; of the last stage and of one block, the output.

    With a reference, [size], the cosine to it takes the place of the logits; with two, [2, size], the difference of the
    cosines to the first and to the second.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = torch.from_numpy(features)[None, None].requires_grad_()
    x = torch.relu(_norm(weights, "encoder.bn1", _conv(weights, "encoder.conv1", x, 1)))
    activations = []
    for stage in (1, 2, 3, 4):
        blocks = sorted({int(name.split(".")[2]) for name in weights if name.startswith(f"encoder.layer{stage}.")})
        for block in blocks:
            at_input = block == blocks[-1] and stage < 4 and len(blocks) > 1
            if at_input:
                activations.append(x)
            x = _block(weights, f"encoder.layer{stage}.{block}", x, 2 if stage > 1 and block == 0 else 1)
        if not at_input:
            activations.append(x)
    mean = x.mean(dim=-1).flatten(1)
    deviation = torch.sqrt(torch.var(x, dim=-1) + 1e-7).flatten(1)
    embedding = torch.cat([mean, deviation], 1) @ weights["encoder.seg_1.weight"].T + weights["encoder.seg_1.bias"]
    classes = weights["head.weight"]
    cosine = (embedding / embedding.norm()) @ (classes / classes.norm(dim=1, keepdim=True)).T
    logits = 32.0 * cosine[0]
    score = logits.max() if target is None else logits[target]
    if reference is not None:
        direction = embedding[0] / embedding.norm()
        cosines = [direction @ torch.from_numpy(each / np.linalg.norm(each)) for each in np.atleast_2d(reference)]
        score = logits = cosines[0] if len(cosines) == 1 else cosines[0] - cosines[1]
    gradients = torch.autograd.grad(score, activations)
    maps = [
        torch.clamp((torch.clamp(g, min=0) * a).sum(1), min=0)[0].detach().numpy()
        for g, a in zip(gradients, activations, strict=True)
    ]
    return logits.detach().numpy(), maps


def _block(weights: Weights, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    hidden = torch.relu(_norm(weights, f"{name}.bn1", _conv(weights, f"{name}.conv1", x, stride)))
    hidden = _norm(weights, f"{name}.bn2", _conv(weights, f"{name}.conv2", hidden, 1))
    if f"{name}.shortcut.0.weight" in weights:
        kernel: Any = weights[f"{name}.shortcut.0.weight"]
        x = _norm(weights, f"{name}.shortcut.1", torch.nn.functional.conv2d(x, kernel, stride=stride))
    return torch.relu(hidden + x)


def _conv(weights: Weights, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    return torch.nn.functional.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    def shaped(part: str) -> torch.Tensor:
        return weights[f"{name}.{part}"][None, :, None, None]

    return (x - shaped("running_mean")) / torch.sqrt(shaped("running_var") + 1e-5) * shaped("weight") + shaped("bias")
