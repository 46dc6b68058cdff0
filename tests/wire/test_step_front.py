"""What is remembered of the beginnings of steps says what a whole look says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest
from mesh.wire.peek import peek
from mesh.wire.step_front import StepFronts

ids = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.text(max_size=40))


@st.composite
def steps(draw: st.DrawFn) -> bytes:
    request = ModelInferRequest(model_name=draw(st.sampled_from("ab")), model_version=draw(st.sampled_from(["", "1"])))
    id_ = draw(ids)
    parameter = request.parameters["sequence_id"]
    if isinstance(id_, str):
        parameter.string_param = id_
    elif id_ > (1 << 63) - 1 or (id_ >= 0 and draw(st.booleans())):
        parameter.uint64_param = id_
    else:
        parameter.int64_param = id_
    if draw(st.booleans()):
        request.parameters["sequence_start"].bool_param = draw(st.booleans())
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(0, 5))
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(draw(st.binary(min_size=4, max_size=4)))
    message = request.SerializeToString(deterministic=True)
    if draw(st.integers(0, 5)) == 0:
        # Fields may come again behind the tensors, and the last one wins.
        message += ModelInferRequest(model_name="c").SerializeToString()
    return message


@given(st.lists(steps(), max_size=30), st.binary(max_size=5))
def test_a_remembered_front_says_what_a_whole_look_says(messages: list[bytes], before: bytes) -> None:
    fronts = StepFronts()
    for message in messages:
        whole = peek(message)
        found = fronts.find(before + message, len(before))
        assert found is None or found == whole
        fronts.learn(before + message, len(before), whole)


def test_the_second_step_of_another_sequence_is_remembered() -> None:
    fronts = StepFronts()

    def step(number: int) -> bytes:
        request = ModelInferRequest(model_name="m", raw_input_contents=[b"1234"])
        request.parameters["sequence_id"].int64_param = number
        request.inputs.add(name="x", datatype="FP32", shape=[1])
        return request.SerializeToString()

    assert fronts.find(step(7), 0) is None
    fronts.learn(step(7), 0, peek(step(7)))
    assert fronts.find(step(9), 0) == peek(step(9))
    # An id of another length is another place in the message.
    assert fronts.find(step(300), 0) is None
    fronts.learn(step(300), 0, peek(step(300)))
    assert fronts.find(step(301), 0) == peek(step(301))


@given(st.lists(steps(), min_size=1, max_size=5), st.data())
def test_damaged_messages_raise_nothing(messages: list[bytes], data: st.DataObject) -> None:
    fronts = StepFronts()
    for message in messages:
        fronts.learn(message, 0, peek(message))
    damaged = bytearray(data.draw(st.sampled_from(messages)))
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    fronts.find(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), 0)
