"""Messages serialised in steps are the messages they were."""

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.rpc.wire import LARGE_BYTES, is_large, serialised, size_of

SIZES = st.sampled_from([0, 1, 127, 128, LARGE_BYTES - 1, LARGE_BYTES, 2 * LARGE_BYTES, 2**21])


@st.composite
def planes(draw: st.DrawFn) -> pb.Plane:
    columns = draw(st.sampled_from([0, 3, 20_000]))
    return pb.Plane(
        stage=draw(st.sampled_from([pb.STAGE_UNSPECIFIED, pb.STAGE_S4])),
        rows=draw(st.integers(-1, 90)),
        columns=columns,
        values=bytes([draw(st.integers(0, 255))]) * draw(SIZES),
        scale=draw(st.sampled_from([0.0, 0.25])),
        frequencies_hz=[20.0, 40.0],
        times_s=[0.5] * columns,
    )


@st.composite
def answers(draw: st.DrawFn) -> pb.IdentifyResponse:
    def answer() -> pb.ModelAnswer:
        explanation = pb.Explanation(target_speaker="é", saliency=draw(st.lists(planes(), max_size=3)))
        return pb.ModelAnswer(
            variant=draw(st.sampled_from(["", "da"])),
            version=draw(st.integers(0, 300)),
            speakers=[pb.SpeakerScore(speaker="a", logit=-1.5), pb.SpeakerScore()],
            known=draw(st.booleans()),
            explanation=explanation if draw(st.booleans()) else None,
            embedding=[0.5] * draw(st.sampled_from([0, 256, 30_000])),
        )

    return pb.IdentifyResponse(
        answers=[answer() for _ in range(draw(st.integers(0, 2)))], timings=pb.Timings(decode_s=0.125)
    )


@settings(max_examples=80, deadline=None)
@given(answers(), st.booleans())
def test_what_is_read_back_is_what_was_written(answer: pb.IdentifyResponse, wrapped: bool) -> None:
    message = pb.IdentifyStreamResponse(whole=answer) if wrapped else answer
    assert type(message).FromString(serialised(message)) == message


@settings(max_examples=80, deadline=None)
@given(answers(), st.integers(0, 2**20))
def test_sizes_are_nearly_right_and_not_looked_at_for_longer_than_it_takes(
    answer: pb.IdentifyResponse, enough: int
) -> None:
    size = answer.ByteSize()
    assert size_of(answer) == pytest.approx(size, rel=0.01, abs=300)
    assert min(size_of(answer), enough) == min(size_of(answer, enough), enough)


def test_names_and_maps_have_a_size_too() -> None:
    names = pb.ListModelsResponse(models=[pb.Model(speakers=["somebody"] * 10_000)])
    assert is_large(names)
    assert not is_large(Struct(fields={"name": Value(string_value="value")}))


def test_an_empty_part_is_still_there() -> None:
    message = pb.IdentifyStreamResponse(window=pb.WindowAnswer())
    assert pb.IdentifyStreamResponse.FromString(serialised(message)).HasField("window")
    plane = pb.Plane(values=bytes(LARGE_BYTES))
    large = pb.IdentifyResponse(answers=[pb.ModelAnswer(explanation=pb.Explanation(log_mel=plane)), pb.ModelAnswer()])
    assert is_large(large)
    assert pb.IdentifyResponse.FromString(serialised(large)) == large
