import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from speakerlens.training.data.audio import write_audio
from speakerlens.training.data.manifest import MANIFEST, Clip, load_corpus, write_corpus
from speakerlens.training.errors import UserError


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    root = tmp_path / "corpus"
    for name in ("b/1.flac", "a/1.flac", "n.flac"):
        write_audio(root / name, np.zeros(4800, dtype=np.float32))
    write_audio(tmp_path / "elsewhere" / "a 2.flac", np.zeros(4800, dtype=np.float32))
    return [
        Clip(Path("b/1.flac"), "utterance", "train", 0.0, 0.3, "bé"),
        Clip(root / "a/1.flac", "utterance", "train", 0.0, 0.2, "a"),
        Clip(tmp_path / "elsewhere" / "a 2.flac", "utterance", "test", 0.05, 0.25, "a"),
        Clip(root / "n.flac", "noise", "test", 0.0, 0.01),
    ]


def test_written_corpus_is_loaded(tmp_path: Path, clips: list[Clip]) -> None:
    root = tmp_path / "corpus"
    written = write_corpus(root, clips)
    corpus = load_corpus(root)
    assert corpus == written
    assert corpus.speakers == ("a", "bé")
    assert [clip.path for clip in corpus.clips] == [
        root / "b/1.flac",
        root / "a/1.flac",
        tmp_path / "elsewhere/a 2.flac",
        root / "n.flac",
    ]
    assert corpus.utterances("test") == (corpus.clips[2],)
    assert corpus.clips[2].start == 0.05
    assert corpus.interference("noise", "test") == (corpus.clips[3],)
    assert corpus.interference("noise", "train") == ()
    assert corpus.digest == hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    assert not list(root.glob(f".{MANIFEST}*"))  # nothing half-written is left


def test_moved_corpus_is_loaded(tmp_path: Path, clips: list[Clip]) -> None:
    write_corpus(tmp_path / "corpus", clips)
    (tmp_path / "away").mkdir()
    for name in ("corpus", "elsewhere"):
        shutil.move(tmp_path / name, tmp_path / "away" / name)
    moved = load_corpus(tmp_path / "away" / "corpus")
    assert [clip.path.is_file() for clip in moved.clips] == [True] * 4


def test_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make a corpus with the command `prepare`"):
        load_corpus(tmp_path)


def test_corpus_without_speakers_is_refused(tmp_path: Path, clips: list[Clip]) -> None:
    with pytest.raises(UserError, match="no utterance"):
        write_corpus(tmp_path / "corpus", clips[3:])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": "voice"}, "kind must be one of utterance, noise, music, speech, rir, not 'voice'"),
        ({"split": "eval"}, "split must be one of train, dev, test"),
        ({"start": -1}, "start must be at least 0"),
        ({"duration": 0}, "duration above 0"),
        ({"duration": 0.199}, "an utterance must last at least 0.2 s, not 0.199"),
        ({"duration": "1"}, "duration must be a number of seconds, not '1'"),
        ({"duration": True}, "duration must be a number"),
        ({"start": float("nan")}, "start must be a number"),
        ({"speaker": None}, "an utterance needs a speaker"),
        ({"speaker": ""}, "speaker must be a name or null"),
        ({"speaker": 7}, "speaker must be a name or null"),
        ({"path": "gone.flac"}, "there is no file"),
        ({"path": ""}, "path must be a file name"),
        ({"path": 3}, "path must be a file name"),
        ({"colour": "red"}, "object with the keys duration, kind, path, speaker, split, start"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, clips: list[Clip], change: dict[str, object], complaint: str) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, clips)
    lines = (root / MANIFEST).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (root / MANIFEST).write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 2: ") as error:
        load_corpus(root)
    assert complaint in str(error.value)


@pytest.mark.parametrize("line", ["{", "[]", "3", "\xff"])
def test_line_that_is_not_an_object_is_named(tmp_path: Path, clips: list[Clip], line: str) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, clips)
    with (root / MANIFEST).open("ab") as file:
        file.write(line.encode("latin-1"))
    with pytest.raises(UserError, match="line 5: "):
        load_corpus(root)


def test_missing_files_are_counted_and_the_first_is_named(tmp_path: Path, clips: list[Clip]) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, clips)
    (root / MANIFEST).write_text("\n\n" + (root / MANIFEST).read_text())
    (root / "a" / "1.flac").unlink()
    (root / "a" / "1.flac").mkdir()  # a folder of that name is no file
    with pytest.raises(UserError, match=r"line 4: there is no file .*/a/1\.flac$"):
        load_corpus(root)
    shutil.rmtree(root / "b")
    with pytest.raises(UserError, match=r"line 3: there is no file .*/b/1\.flac; 2 files are missing in all$"):
        load_corpus(root)


def test_files_may_be_links(tmp_path: Path, clips: list[Clip]) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, clips)
    (root / "n.flac").rename(tmp_path / "noise.flac")
    (root / "n.flac").symlink_to(tmp_path / "noise.flac")
    (root / "a").rename(tmp_path / "speaker")
    (root / "a").symlink_to(tmp_path / "speaker")
    assert len(load_corpus(root).clips) == 4
    (tmp_path / "noise.flac").unlink()
    with pytest.raises(UserError, match=r"line 4: there is no file .*n\.flac$"):
        load_corpus(root)
