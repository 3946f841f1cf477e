"""A WeSpeaker network with bottlenecks, from its checkpoint to the served answer."""

from pathlib import Path

import pytest
import torch

from speakerlens.export.blocks import FoldedBottleneck
from speakerlens.export.bundle import export_run
from speakerlens.export.graph import ExportedNetwork
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.training.cli import main
from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import layercam
from tests.serving.harness import ServerProcess, raw
from tests.training.toy import SPEAKERS, make_corpus
from tests.training.wespeaker_reference import ReferenceResNet, make, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("imported") / "corpus", interference=False)


@pytest.fixture(scope="module")
def foreign() -> ReferenceResNet:
    return make((1, 2, 1, 1), bottleneck=True, classes=9, width=2)


@pytest.fixture(scope="module")
def bundles(corpus: Corpus, foreign: ReferenceResNet) -> Path:
    """Exported, with verification against eager autograd on fewer utterances, lengths and batch sizes."""
    folder = corpus.root.parent
    checkpoint, config = write(folder, foreign)
    (folder / "speakers").write_text("\n".join(SPEAKERS))
    words = [checkpoint, "--config", config, "--speakers", folder / "speakers", "--corpus", corpus.root]
    assert main(["import-wespeaker", *map(str, words), "--out", str(folder / "run"), "--device", "cpu"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speakerlens.export.parity.SECONDS", (1.0, 1.6))
        patch.setattr("speakerlens.export.parity.BATCH_SIZES", (3,))
        patch.setattr("speakerlens.export.parity.UTTERANCES", 6)
        written = export_run(folder / "run", folder / "bundles", lambda done, total: None)
    assert written.folder == folder / "bundles" / "resnet17" / "1"
    return folder / "bundles"


def test_served_answer_is_that_of_the_plain_network(bundles: Path, corpus: Corpus, foreign: ReferenceResNet) -> None:
    clips = corpus.utterances("test")
    sounds = [read_audio(clip.path, clip.start, clip.duration) for clip in clips]
    with ServerProcess(bundles) as server:
        for audio in (*sounds, sounds[0][:9000]):
            request = pb.IdentifyRequest(audio=raw(audio), explain=pb.ExplainOptions(), with_embedding=True)
            answer = server.identify(request).answers[0]
            scores = foreign.scores(audio, len(SPEAKERS))
            served = {each.speaker: each.logit for each in answer.speakers}
            assert [served[name] for name in SPEAKERS] == pytest.approx(scores.tolist(), abs=1e-3)
            assert answer.explanation.target_speaker == SPEAKERS[int(scores.argmax())]
            embedding = foreign.embed(audio)
            served_embedding = torch.tensor(list(answer.embedding))
            assert (served_embedding - embedding).norm() < 1e-4 * embedding.norm()


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 2, 1)])
def test_bottleneck_gradients_match_autograd(blocks: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    network = SpeakerNetwork(NetworkConfig(blocks, 3, 8, 24, "bottleneck"), HeadConfig(), 5).train()
    for _ in range(3):
        network(0.1 * torch.randn(4, 8000))  # so that batch normalisation has statistics
    network.eval()
    exported = ExportedNetwork(network)
    assert sum(isinstance(block, FoldedBottleneck) for block in exported.blocks) == sum(blocks)
    audio, lengths, target = 0.1 * torch.randn(3, 9999), torch.tensor([9999, 8001, 7777]), torch.tensor([0, 4, -1])
    expected = layercam(network, audio, lengths, target)
    found = exported.explain(audio, lengths, target)
    assert torch.equal(found.explained, expected.target)
    maps = (found.saliency_s1, found.saliency_s2, found.saliency_s3, found.saliency_s4)
    for ours, reference in zip(maps, expected.maps, strict=True):
        assert reference.norm() > 0
        assert (ours - reference).norm() < 1e-4 * reference.norm()
