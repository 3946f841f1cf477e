"""Maps and measures of the eager reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch.nn import functional as F

from speakerlens.training.config import load_config
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.model.front_end import LogMel
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import deletion_index, display, dominated_bins, fused, layercam

CONFIGS = Path(__file__).parents[3] / "training" / "configs"


@pytest.fixture(scope="module")
def network(audio: torch.Tensor) -> SpeakerNetwork:
    """The demo's network with random weights, normalised by the statistics of speech."""
    config = load_config(CONFIGS / "demo.yaml")
    torch.manual_seed(0)
    network = SpeakerNetwork(config.network, config.head, 8).train()
    with torch.no_grad():
        for _ in range(40):
            network(audio)
    return network.eval()


@pytest.fixture(scope="module")
def audio(demo_corpus: Path) -> torch.Tensor:
    clip = load_corpus(demo_corpus).utterances("test")[0]
    return torch.from_numpy(read_audio(clip.path, clip.start, clip.duration))[None]


def test_maps_agree_with_captum(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    """Activations are not negative, so ReLU(gradient) x activation is ReLU(gradient x activation), as captum has."""
    ours = layercam(network, audio)
    features, frames = network.front_end(audio)

    def score(features: torch.Tensor) -> torch.Tensor:
        return network.logits(network.encoder(features, frames, masked=True).embedding)

    outputs = [blocks[-1] for blocks in network.encoder.layers]
    for stage, (tap, block) in enumerate(zip(network.encoder.taps, outputs, strict=True)):
        attribution = LayerGradientXActivation(score, block)
        at_input = tap == "last-block-input"
        target = int(ours.target)
        theirs = attribution.attribute(features, target=target, attribute_to_layer_input=at_input)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        expected = theirs.relu().sum(dim=1)
        error = (ours.maps[stage] - expected).norm() / expected.norm()
        assert error < 1e-4, (stage, tap)


def test_target_changes_the_maps(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    predicted = layercam(network, audio)
    other = (predicted.target + 1) % predicted.logits.shape[1]
    named = layercam(network, audio, target=other)
    assert torch.equal(named.logits, predicted.logits)
    assert all(not torch.allclose(a, b) for a, b in zip(named.maps, predicted.maps, strict=True))


def test_display_is_torch_interpolation_of_the_normalised_map() -> None:
    raw = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    shown = display(raw, torch.tensor([7, 4]), torch.tensor([50, 29]), 40, 50)
    expected = F.interpolate(raw[1:, None, :, :4] / raw[1, :, :4].max(), (40, 29), mode="bilinear")[0, 0]
    torch.testing.assert_close(shown[1, :, :29], expected)
    assert not shown[1, :, 29:].any()
    assert shown[0].max() <= 1


def test_zero_map_is_displayed_as_zero() -> None:
    shown = display(torch.zeros(1, 3, 4), torch.tensor([4]), torch.tensor([20]), 12, 20)
    assert not shown.any()


def test_fused_is_the_mean_of_the_last_three(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    saliency = layercam(network, audio)
    mel, frames = saliency.features.shape[1:]
    shown = [display(saliency.maps[s], saliency.columns[s], saliency.frames, mel, frames) for s in (1, 2, 3)]
    torch.testing.assert_close(fused(saliency), (shown[0] + shown[1] + shown[2]) / 3)


def test_deletion_index_equals_a_hand_computation() -> None:
    saliency = torch.zeros(3, 2, 4)
    saliency[0] = 1.0  # spread evenly: blind
    saliency[1, 0] = 1.0  # only where the speech dominates: deletes everything
    saliency[2, :, 0] = 1.0  # the third row ends after two frames
    dominated = torch.zeros(3, 2, 4, dtype=torch.bool)
    dominated[:, 1] = True
    index = deletion_index(saliency, dominated, torch.tensor([4, 4, 2]))
    torch.testing.assert_close(index, torch.tensor([1.0, 0.0, 1.0]))
    nothing = deletion_index(saliency[:1], torch.zeros(1, 2, 4, dtype=torch.bool), torch.tensor([4]))
    assert nothing.isnan().all()


def test_dominated_bins_find_a_tone() -> None:
    time = np.arange(16000) / 16000
    tone = torch.from_numpy(0.3 * np.sin(2 * np.pi * 3000 * time)).float()[None]
    speech = 0.05 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    front_end = LogMel()
    dominated = dominated_bins(front_end, speech, tone)[0]
    centres = np.array(front_end.centres_hz())
    assert dominated[int(np.abs(centres - 3000).argmin())].all()
    assert not dominated[int(np.abs(centres - 500).argmin())].any()
